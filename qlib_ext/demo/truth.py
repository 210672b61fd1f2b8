"""What the generator knows and no model may see: the true expected label of every stock-day, and the best possible IC."""

import numpy as np
import pandas as pd

from qlib_ext.demo import signal
from qlib_ext.demo.market import GENERATOR, Market
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import instrument_column
from qlib_ext.report.metrics import daily_ic

STATEMENT = (
    "This market is generated: its prices, companies and signal are made up. Results on it show that the software works and "
    "compare models under a known signal; they say nothing on what anybody would earn in a real market."
)
DEFINITION = (
    "expected = true conditional expectation, at the close of day t, of the label {label}, given the latent states at t: "
    "5 * {mean} + scale[n] * (PAY_S * s * sum_k ps^k * (1 + E tanh(h[t+k]) / 2) "
    "+ PAY_V * v * sum_k pv^k * (1 - E tanh(h[t+k]) / 2) + PAY_SV * s * v * sum_k (ps * pv)^k), "
    "k = 1..5; see qlib_ext.demo.signal"
)


def truth_table(market: Market) -> pd.DataFrame:
    """One row per stock and listed day: `date`, `instrument`, `expected` (a fraction; what it is: `signal.expected_label`)."""
    stock, day = np.nonzero(market.listed.T)
    return pd.DataFrame(
        {
            "date": market.days[day].astype("datetime64[ms]"),
            "instrument": instrument_column(market, stock),
            "expected": market.expected[day, stock],
        }
    )


def best_ic(market: Market) -> dict[str, dict[str, float | None]]:
    """Mean daily Pearson correlation of `expected` with the realised label among stocks traded on the day, by universe and year.

    Returns:
        universe ('all', 'csi300', ...) -> {'2015': ..., ..., 'total': ...}; None where no day has a label.
    """
    label = signal.realised_label(market.adjusted_close())
    universes = {"all": market.trading}
    universes.update({name: (market.member == index) & market.trading for index, name in enumerate(INDEX_NAMES)})
    years = market.days.astype("datetime64[Y]").astype(int) + 1970
    result = {}
    for name, mask in universes.items():
        day, stock = np.nonzero(mask)
        daily = daily_ic(market.expected[day, stock], label[day, stock], day, min_count=3, day_count=len(market.days))
        result[name] = {str(year): _mean(daily[years == year]) for year in np.unique(years)}
        result[name]["total"] = _mean(daily)
    return result


def truth_summary(market: Market, fingerprint: str) -> dict:
    """Content of the `.truth.json` beside a demo store with that fingerprint."""
    return {
        "statement": STATEMENT,
        "generator": GENERATOR,
        "seed": market.seed,
        "label": signal.LABEL,
        "definition": DEFINITION.format(label=signal.LABEL, mean=signal.MEAN_RETURN),
        "index_sizes": dict(zip(INDEX_NAMES, market.index_sizes, strict=True)),
        "span": [str(market.days[0]), str(market.days[-1])],
        "stocks": int(market.listed.any(axis=0).sum()),
        "best_possible_ic": best_ic(market),
        "store_fingerprint": fingerprint,
    }


def _mean(daily: np.ndarray) -> float | None:
    known = daily[np.isfinite(daily)]
    return round(float(known.mean()), 6) if len(known) else None
