"""A generated A-share market: daily bars, corporate actions, suspensions, listings around a planted signal (`demo.signal`).

Axes: `t` trading day, `n` stock. Every random component has its own stream, drawn day by day: a new component, or a later last
day, leaves what was drawn before as it is. A day's prices use states and draws up to that day only.
"""

from dataclasses import dataclass

import numpy as np

from qlib_ext.demo import signal
from qlib_ext.demo.bars import RETURN_LIMIT, trade, turn_over
from qlib_ext.demo.membership import assign_members
from qlib_ext.errors import ConfigError

GENERATOR = 1
START, END = "2015-01-05", "2024-12-31"
INDEX_SIZES = (60, 100, 200)
INDUSTRIES = 31
REVERSAL = -0.55
SHADOW_TILT = 0.21
SHADOW_NOISE = 0.45
HOLIDAYS = (("01-01", "01-03"), ("02-08", "02-14"), ("04-04", "04-06"), ("05-01", "05-05"), ("10-01", "10-07"))
STREAMS = {
    name: number
    for number, name in enumerate(
        ("stock", "pressure", "attention", "market_state", "market", "industry")
        + ("noise", "volatility", "bar", "volume", "event", "spell")
    )
}


@dataclass(frozen=True)
class Market:
    """One generated market. Arrays are [t, n] unless said; prices are raw CNY, NaN before listing.

    Attributes:
        seed: seed of all draws.
        days: [t] datetime64[D] trading days.
        instruments: [n] codes such as `SH600001`.
        listed, trading: bool; a listed day without trading is a suspension (flat bar, no volume).
        open, high, low, close: raw prices in CNY, rounded to 0.01.
        volume: shares, int64, 0 when suspended. amount: CNY.
        factor: adjusted price = raw price x factor; 1 on a stock's first day.
        float_shares: shares in force on the day. float_shares_after: after its close (with bonus and unlocked shares).
        is_st: bool. industry: int, 0..30.
        month_end: [t] bool, last trading day of a calendar month.
        member: int8, position in `index_sizes` of the index the stock belongs to, -1 for none.
        index_sizes: members of csi300, csi500, csi1000.
        expected: true conditional expectation of the 5-day label at the close (`signal.expected_label`), NaN before listing.
    """

    seed: int
    days: np.ndarray
    instruments: list[str]
    listed: np.ndarray
    trading: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    amount: np.ndarray
    factor: np.ndarray
    float_shares: np.ndarray
    float_shares_after: np.ndarray
    is_st: np.ndarray
    industry: np.ndarray
    month_end: np.ndarray
    member: np.ndarray
    index_sizes: tuple[int, int, int]
    expected: np.ndarray

    def adjusted_close(self) -> np.ndarray:
        """[t, n] raw close x factor, NaN when not traded."""
        return np.where(self.trading, self.close * self.factor, np.nan)


def make_market(
    seed: int = 0, stocks: int = 400, start: str = START, end: str = END, index_sizes: tuple[int, int, int] = INDEX_SIZES
) -> Market:
    """Generate a market.

    Args:
        seed: same seed, same bytes.
        stocks: number of stocks; about one in thirteen is listed after the start.
        start, end: first and last calendar day (the market of a shorter span is the beginning of the longer one).
        index_sizes: members of the three indices, largest companies first.

    Raises:
        ConfigError: fewer listed stocks than index members, or an empty span.
    """
    days, month_end = trading_days(start, end)
    static = _stocks(seed, stocks, np.datetime64(start, "D"))
    listed = days[:, None] >= static["listing"]
    if listed[0].sum() < sum(index_sizes):
        raise ConfigError(
            f"demo market: {sum(index_sizes)} index members asked of {int(listed[0].sum())} stocks listed at the start; "
            "raise stocks or lower index_sizes"
        )
    paths = _paths(seed, days, static)
    shape = listed.shape
    bars = trade(days, month_end, listed, static, paths, _stream(seed, "event").random((shape[0], 8, shape[1])))
    bars.update(turn_over(bars, static, paths, _stream(seed, "volume").standard_normal((shape[0], shape[1] + 1))))
    float_cap = np.where(listed, bars["close"] * bars["float_shares"], np.nan)
    member = assign_members(days, float_cap, static["price"] * static["shares"], listed, index_sizes)
    expected = signal.expected_label(paths["pressure"], paths["attention"], paths["market_state"], static["volatility"])
    return Market(
        seed=seed,
        days=days,
        instruments=static["instruments"],
        listed=listed,
        is_st=listed & _spell(days, static["st_start"], static["st_days"]),
        industry=np.where(days[:, None] < static["reclassified"], static["industry"], static["industry_after"]),
        month_end=month_end,
        member=member,
        index_sizes=tuple(index_sizes),
        expected=np.where(listed, expected, np.nan),
        **bars,
    )


def trading_days(start: str = START, end: str = END) -> tuple[np.ndarray, np.ndarray]:
    """Weekdays without the fixed holiday weeks: ([t] datetime64[D], [t] bool last trading day of its month)."""
    first, last = np.datetime64(start, "D"), np.datetime64(end, "D")
    if last < first:
        raise ConfigError(f"demo market: end {end} lies before start {start}")
    days = np.arange(first, last + np.timedelta64(40, "D"))
    year = days.astype("datetime64[Y]")
    is_open = np.is_busday(days)
    for begin, finish in HOLIDAYS:
        edges = [(year.astype(str).astype(object) + f"-{edge}").astype("datetime64[D]") for edge in (begin, finish)]
        is_open &= ~((days >= edges[0]) & (days <= edges[1]))
    days = days[is_open]
    month = days.astype("datetime64[M]")
    month_end = np.append(month[1:] != month[:-1], False)
    kept = days <= last
    if not kept.any():
        raise ConfigError(f"demo market: no trading day between {start} and {end}")
    return days[kept], month_end[kept]


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS[name],)))


def _spell(days: np.ndarray, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    return (days[:, None] >= begin) & (days[:, None] < begin + length)


def _codes(stocks: int, late: int) -> list[str]:
    """Codes by board; SH68 exists only among late listings, as the real board opened in 2019."""
    early = stocks - late
    sizes = {"SH600": early * 46 // 100, "SZ300": early * 22 // 100}
    sizes["SZ000"] = early - sum(sizes.values())
    codes = [f"{board}{number:03d}" for board in ("SH600", "SZ000", "SZ300") for number in range(1, sizes[board] + 1)]
    boards = ("SH688", "SZ301", "SH688", "SH603", "SZ002")
    return codes + [f"{boards[k % 5]}{k // 5 * 2 + (k % 5 == 2) + 1:03d}" for k in range(late)]


def _stocks(seed: int, stocks: int, start: np.datetime64) -> dict:
    """Attributes of each stock, [n]: listing day, volatility, beta, price, shares, industry, ST spell."""
    draw = _stream(seed, "stock").standard_normal((stocks, 8))
    uniform = _stream(seed, "spell").random((stocks, 8))
    late = stocks * 3 // 40
    instruments = _codes(stocks, late)
    is_late = np.arange(stocks) >= stocks - late
    is_star = np.array([code.startswith("SH68") for code in instruments])
    opened = np.where(is_star, np.datetime64("2019-07-22"), np.datetime64("2015-04-01"))
    span = (np.datetime64("2024-06-28") - opened).astype(int)
    size = draw[:, 0] - 0.6 * is_late
    price = np.round(np.clip(np.exp(3.0 + 0.45 * draw[:, 1]), 5.0, 90.0), 2)
    industry = (uniform[:, 0] * INDUSTRIES).astype(int)
    moved = uniform[:, 1] < 0.05
    day_one, never = np.datetime64("2015-01-01"), np.datetime64("2200-01-01")
    return {
        "instruments": instruments,
        "listing": np.where(is_late, opened + (uniform[:, 2] * span).astype(int), start),
        "volatility": 0.020 * np.exp(0.22 * draw[:, 2] - 0.06 * size),
        "beta": np.clip(1.0 + 0.22 * draw[:, 3], 0.3, 1.8),
        "industry_beta": np.clip(1.0 + 0.2 * draw[:, 4], 0.3, 1.8),
        "price": price,
        "shares": np.round(6e9 * np.exp(1.0 * size) / price, -4),
        "turnover": 0.012 * np.exp(0.35 * draw[:, 5] - 0.15 * size),
        "industry": industry,
        "industry_after": np.where(moved, (industry + 7) % INDUSTRIES, industry),
        "reclassified": np.where(moved, day_one + (365 + uniform[:, 3] * 2900).astype(int), never),
        "st_start": np.where(uniform[:, 4] < 0.04, day_one + (200 + uniform[:, 5] * 3000).astype(int), never),
        "st_days": (250 + 300 * uniform[:, 6]).astype(int),
    }


def _paths(seed: int, days: np.ndarray, static: dict) -> dict:
    """Latent states and everything built from them before prices: returns, gap, shadows (fractions, [t, n])."""
    shape = (len(days), len(static["listing"]))
    shocks = _stream(seed, "pressure").standard_normal(shape)
    pressure = signal.autoregress(shocks, signal.HALF_LIFE_S)
    attention = signal.autoregress(_stream(seed, "attention").standard_normal(shape), signal.HALF_LIFE_V)
    state = signal.autoregress(_stream(seed, "market_state").standard_normal(len(days)), signal.HALF_LIFE_H)
    own = signal.autoregress(_stream(seed, "volatility").standard_normal(shape), 20.0)
    width = static["volatility"] * np.exp(0.2 * state[:, None] - 0.02 + 0.25 * own - 0.03)
    fat = _stream(seed, "noise").standard_t(5, shape) * np.sqrt(0.6)
    noise = width * (REVERSAL * shocks + np.sqrt(1.0 - REVERSAL**2) * fat)
    market = 0.010 * np.exp(0.35 * state - 0.06) * _stream(seed, "market").standard_t(6, len(days)) * np.sqrt(4 / 6)
    group = 0.006 * np.exp(0.2 * state - 0.02)[:, None] * _stream(seed, "industry").standard_normal((len(days), INDUSTRIES))
    common = static["beta"] * market[:, None] + static["industry_beta"] * group[:, static["industry"]]
    drift = np.zeros(shape)
    drift[1:] = signal.drift(pressure, attention, state, static["volatility"])[:-1]
    returns = np.clip(signal.MEAN_RETURN + drift + common + noise, -RETURN_LIMIT, RETURN_LIMIT)
    bar = _stream(seed, "bar").standard_normal((len(days), 4, shape[1]))
    return {
        "pressure": pressure,
        "attention": attention,
        "market_state": state,
        "width": width,
        "returns": returns,
        "gap": np.clip(0.3 * returns + 0.35 * width * bar[:, 0], -RETURN_LIMIT, RETURN_LIMIT),
        "upper": 0.45 * width * np.exp(-SHADOW_TILT * pressure + SHADOW_NOISE * bar[:, 1]),
        "lower": 0.45 * width * np.exp(SHADOW_TILT * pressure + SHADOW_NOISE * bar[:, 2]),
        "middle": bar[:, 3],
    }
