"""A small store with everything that is hard on window formulas: gaps, one-bar stocks, late listings, constant prices, ties, zero and
huge volumes, penny prices; and where each cell stands in the windows, for rules stated on the inputs."""

import numpy as np
import pandas as pd

from tiny_market_store import write_store

DAYS = pd.bdate_range("2020-01-01", periods=230)
FIELDS = ("open", "high", "low", "close", "volume", "vwap", "factor", "change")


def bars_of(kind: str, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Bars of one stock over all days, float64; NaN = suspended."""
    days = len(DAYS)
    close = 10 * np.exp(np.cumsum(generator.normal(0, 0.02, days)))
    volume = np.exp(generator.normal(12, 1, days))
    if kind == "ticks":  # many ties
        close = np.round(close * 2) / 2
    if kind == "penny":  # deviations around Qlib's limit of 2e-5
        close = close * 2e-4
    if kind == "dear":
        close = close * 1e5
    spread = 0 if kind == "one price" else np.abs(generator.normal(0, 0.01, (3, days)))
    bars = {"open": close * (1 + generator.normal(0, 0.005, days)), "close": close, "volume": volume}
    if kind == "one price":
        bars["open"] = close
    bars["high"] = np.maximum(bars["open"], close) * (1 + np.max(spread, axis=0))
    bars["low"] = np.minimum(bars["open"], close) * (1 - np.max(spread, axis=0))
    if kind == "ticks":
        bars = {name: values if name == "volume" else np.round(values * 2) / 2 for name, values in bars.items()}
    if kind == "frozen":  # ninety days at one price
        for name in ("open", "high", "low", "close"):
            bars[name][60:150] = 7.77
        bars["volume"][80:150] = 12345
    if kind == "no trade":
        bars["volume"][40:120] = 0
        bars["volume"][::7] = 0
    if kind == "burst":  # a volume far beyond all others
        bars["volume"][70:73] *= 1e7
    bars["vwap"] = (bars["high"] + bars["low"] + bars["close"]) / 3
    bars["factor"] = np.ones(days)
    bars["change"] = np.r_[np.nan, close[1:] / close[:-1] - 1]
    if kind == "gaps":
        off = generator.random(days) < 0.3
        off[50:120] = True
        for name in FIELDS[:6]:
            bars[name][off] = np.nan
    if kind == "holes":  # fields unknown on different days
        for name in FIELDS[:6]:
            bars[name][generator.random(days) < 0.1] = np.nan
    return bars


PLAIN = {"infer_processors": [], "learn_processors": []}
FIT = {"fit_start_time": "2020-02-03", "fit_end_time": "2020-06-30"}
ROBUST = [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}},
          {"class": "Fillna", "kwargs": {"fields_group": "feature"}}]
CALM = [f"SH{600000 + k}" for k in (0, 2, 3, 8, 10, 12, 13, 18, 20, 21, 22)]  # Qlib's carried rounding stays within the tolerance
KINDS = ["plain", "ticks", "penny", "dear", "one price", "frozen", "no trade", "burst", "gaps", "holes"]


def build(folder, seed: int = 0):
    """The store; stocks SH600000 ... two of each kind, and a late, an early-ending and a one-bar stock."""
    generator = np.random.default_rng(seed)
    bars, spans = {}, []
    for number, kind in enumerate(KINDS * 2 + ["late", "early end", "one bar"]):
        code = f"SH{600000 + number}"
        bars[code] = bars_of(kind, generator)
        first, last = {"late": (170, 229), "early end": (0, 100), "one bar": (120, 120)}.get(kind, (0, 229))
        bars[code] = {name: (first, values[first:last + 1]) for name, values in bars[code].items()}
        spans.append((code, str(DAYS[first].date()), str(DAYS[last].date())))
    members = [(code, start, end) for k, (code, start, end) in enumerate(spans) if k % 3]
    members += [(spans[0][0], str(DAYS[30].date()), str(DAYS[60].date())), (spans[0][0], str(DAYS[150].date()), str(DAYS[229].date()))]
    write_store(folder, DAYS, {}, {"all": spans, "some": members})
    for code, fields in bars.items():
        place = folder / "features" / code.lower()
        place.mkdir(parents=True, exist_ok=True)
        for field, (first, values) in fields.items():
            np.r_[float(first), values].astype("<f4").tofile(place / f"{field}.day.bin")
    return folder


def alike(found: pd.DataFrame, expected: pd.DataFrame, **options) -> None:
    """Equal within the tolerance of the features; the float type may differ."""
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, **{"rtol": 1e-5, "atol": 1e-6, **options})


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal to the bit."""
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
