"""What the generator knows and no model may see: the true expected label of every stock-day, and the best possible IC."""

import numpy as np
import pandas as pd

from qlib_ext.demo import signal
from qlib_ext.demo.counts import special_cases
from qlib_ext.demo.market import GENERATOR, INDEX_SIZES, Market
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import instrument_column
from qlib_ext.report.metrics import daily_ic

STATEMENT = (
    "This market is generated: its prices, companies and signal are made up. Results on it show that the software works and "
    "compare models under a known signal; they say nothing on what anybody would earn in a real market."
)
DEFINITION = (
    "expected = true conditional expectation, at the close of day t, of the label {label}, given the latent states at t: "
    "5 * {mean} + sum over the parts {parts} and k = 1..5 of E[drift(t+k) | t]; see qlib_ext.demo.signal"
)
ONE_FIFTH = "csi300, csi500 and csi1000 hold 60, 100 and 200 stocks: one fifth of the real ones; sizes of lists scale with them"


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
        universe ('all', 'csi300', ...) -> {'2015': ..., ..., 'total': ...}; None where no day has a label, and everywhere in a
        null market, where nothing can be known.
    """
    years = market.days.astype("datetime64[Y]").astype(int) + 1970
    result = {}
    for name, daily in _daily_ic(market, market.expected).items():
        result[name] = {str(year): _mean(daily[years == year]) for year in np.unique(years)}
        result[name]["total"] = _mean(daily)
    return result


def part_shares(market: Market) -> dict[str, dict]:
    """part -> {'variance_share': its share of the expected label's variance across stocks, mean over days; 'best_ic': universe ->
    best possible IC of a model that knows this part alone}; None in a null market."""
    with np.errstate(invalid="ignore"):
        total = np.nanvar(market.expected, axis=1).mean()
        shares = {name: np.nanvar(values, axis=1).mean() / total for name, values in market.parts.items()}
    null = market.switches["null"]
    return {
        name: {
            "variance_share": None if null else round(float(share), 4),
            "best_ic": {universe: _mean(daily) for universe, daily in _daily_ic(market, market.parts[name]).items()},
        }
        for name, share in shares.items()
    }


def _daily_ic(market: Market, values: np.ndarray) -> dict[str, np.ndarray]:
    """Daily correlations [t] of values [t, n] with the realised label, by universe."""
    label = signal.realised_label(market.adjusted_close())
    known = market.trading & (not market.switches["null"])
    universes = {"all": known}
    universes.update({name: (market.member == index) & known for index, name in enumerate(INDEX_NAMES)})
    result = {}
    for name, mask in universes.items():
        day, stock = np.nonzero(mask)
        result[name] = daily_ic(values[day, stock], label[day, stock], day, min_count=3, day_count=len(market.days))
    return result


def truth_summary(market: Market, fingerprint: str) -> dict:
    """Content of the `.truth.json` beside a demo store with that fingerprint."""
    return {
        "statement": STATEMENT,
        "generator": GENERATOR,
        "seed": market.seed,
        "switches": market.switches,
        "label": signal.LABEL,
        "definition": DEFINITION.format(label=signal.LABEL, mean=signal.MEAN_RETURN, parts=", ".join(signal.PARTS)),
        "index_sizes": dict(zip(INDEX_NAMES, market.index_sizes, strict=True)),
        "index_sizes_statement": ONE_FIFTH if market.index_sizes == INDEX_SIZES else "index sizes as given",
        "span": [str(market.days[0]), str(market.days[-1])],
        "stocks": int(market.listed.any(axis=0).sum()),
        "best_possible_ic": best_ic(market),
        "parts": part_shares(market),
        "special_cases": special_cases(market),
        "store_fingerprint": fingerprint,
    }


def _mean(daily: np.ndarray) -> float | None:
    known = daily[np.isfinite(daily)]
    return round(float(known.mean()), 6) if len(known) else None
