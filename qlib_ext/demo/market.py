"""A generated A-share market: daily bars, corporate actions, suspensions, listings around a planted signal (`demo.signal`).

Axes: `t` trading day, `n` stock. Every random component has its own stream (`demo.streams`). A day's prices use states and draws
up to that day only.
"""

from dataclasses import dataclass

import numpy as np

from qlib_ext.demo import signal
from qlib_ext.demo.bars import trade, turn_over
from qlib_ext.demo.membership import assign_members
from qlib_ext.demo.paths import make_paths
from qlib_ext.demo.stocks import draw_stocks, size_bands
from qlib_ext.demo.streams import stream
from qlib_ext.errors import ConfigError
from qlib_ext.market_rules import board_of

GENERATOR = 4
START, END = "2015-01-05", "2024-12-31"
INDEX_SIZES = (60, 100, 200)
HOLIDAYS = (("01-01", "01-03"), ("02-08", "02-14"), ("04-04", "04-06"), ("05-01", "05-05"), ("10-01", "10-07"))
LONG_AGO = 100_000


@dataclass(frozen=True)
class Market:
    """One generated market. Arrays are [t, n] unless said; prices are raw CNY, NaN outside the listing.

    Attributes:
        seed: seed of all draws. switches: {"drift": bool, "null": bool, "size_groups": bool}.
        days: [t] datetime64[D] trading days. month_end: [t] bool, last trading day of a calendar month.
        instruments: [n] codes such as `SH600001`. board: [n] as of `market_rules.board_of`.
        static: attributes of each stock, [n] (`stocks.draw_stocks`).
        listed, trading: bool; a listed day without trading is a suspension (flat bar, no volume).
        listed_days: trading days since the listing, 0 on its day.
        open, high, low, close: raw prices in CNY, rounded to 0.01.
        volume: shares, int64, 0 when suspended. amount: CNY.
        factor: adjusted price = raw price x factor; 1 on a stock's first day.
        cash, bonus: CNY and new shares per share on the ex-date, else 0.
        float_shares, total_shares: in force on the day. float_shares_after, total_shares_after: after its close (with bonus and
            unlocked shares).
        is_st: bool. industry: int, 0..30.
        member: int8, position in `index_sizes` of the index the stock belongs to, -1 for none.
        index_sizes: members of csi300, csi500, csi1000.
        states: latent states (`signal.daily_parts`).
        parts: part -> its share of `expected` (`signal.expected_parts`), NaN outside the listing.
        expected: true conditional expectation of the 5-day label at the close, NaN outside the listing.
    """

    seed: int
    switches: dict
    days: np.ndarray
    month_end: np.ndarray
    instruments: list[str]
    board: np.ndarray
    static: dict
    listed: np.ndarray
    trading: np.ndarray
    listed_days: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    amount: np.ndarray
    factor: np.ndarray
    cash: np.ndarray
    bonus: np.ndarray
    float_shares: np.ndarray
    float_shares_after: np.ndarray
    total_shares: np.ndarray
    total_shares_after: np.ndarray
    is_st: np.ndarray
    industry: np.ndarray
    member: np.ndarray
    index_sizes: tuple[int, int, int]
    states: dict
    parts: dict
    expected: np.ndarray

    def adjusted_close(self) -> np.ndarray:
        """[t, n] raw close x factor, NaN when not traded."""
        return np.where(self.trading, self.close * self.factor, np.nan)

    def last_listed(self) -> np.ndarray:
        """[n] position of each stock's last listed day."""
        return len(self.days) - 1 - np.argmax(self.listed[::-1], axis=0)


def make_market(
    seed: int = 0, stocks: int = 440, start: str = START, end: str = END, index_sizes: tuple[int, int, int] = INDEX_SIZES,
    drift: bool = False, null: bool = False, size_groups: bool = False,
) -> Market:  # fmt: skip
    """Generate a market.

    Args:
        seed: same seed, same bytes.
        stocks: number of stocks; about one in ten is listed after the start.
        start, end: first and last calendar day (the market of a shorter span is the beginning of the longer one).
        index_sizes: members of the three indices, largest companies first.
        drift: the pay-offs rotate among the parts of the signal over the years (`signal.payoff_path`).
        null: no signal at all: every pay-off is 0 and nothing foretells returns.
        size_groups: the groups that share a return and a signal are bands of size instead of hidden ones, and pay twice as much.

    Raises:
        ConfigError: fewer listed stocks than index members, an empty span, or more than one switch.
    """
    switches = {"drift": bool(drift), "null": bool(null), "size_groups": bool(size_groups)}
    if sum(switches.values()) > 1:
        raise ConfigError(f"demo market: one switch at a time, drift or null or size_groups, not {switches}")
    days, month_end, later = _calendar(start, end)
    static = draw_stocks(seed, stocks, np.datetime64(start, "D"))
    if size_groups:
        static["group"] = size_bands(static)
    listed = (days[:, None] >= static["listing"]) & (days[:, None] <= static["last_day"])
    if listed[0].sum() < sum(index_sizes):
        raise ConfigError(f"demo market: {sum(index_sizes)} index members asked of {int(listed[0].sum())} stocks listed at the "
                          "start; raise stocks or lower index_sizes")  # fmt: skip
    status = _status(days, static, listed)
    path = signal.payoff_path(np.append(days, later), **switches)
    paths = make_paths(seed, days, static, status, path)
    bars = trade(days, month_end, listed, static, status, paths, stream(seed, "event").random((len(days), 8, stocks)))
    draws = stream(seed, "volume").standard_normal((len(days), stocks + 1))
    bars.update(turn_over(bars, static, paths, draws, stream(seed, "interest").standard_normal((len(days), stocks))))
    listed, first_cap = bars["listed"], static["price"] * static["float_shares"]
    status["is_st"] &= listed
    return Market(
        seed=seed,
        switches=switches,
        days=days,
        month_end=month_end,
        instruments=static["instruments"],
        static=static,
        industry=np.where(days[:, None] < static["reclassified"], static["industry"], static["industry_after"]),
        member=assign_members(days, bars["close"] * bars["float_shares"], first_cap, listed, status["is_st"], index_sizes),
        index_sizes=tuple(index_sizes),
        states=paths["states"],
        parts={name: np.where(listed, part, np.nan) for name, part in paths["parts"].items()},
        expected=np.where(listed, len(signal.LABEL_LAGS) * signal.MEAN_RETURN + sum(paths["parts"].values()), np.nan),
        **status,
        **bars,
    )


def _status(days: np.ndarray, static: dict, listed: np.ndarray) -> dict:
    """What the price limits depend on: board [n], is_st and trading days since the listing [t, n]."""
    age = np.arange(len(days))[:, None] - np.searchsorted(days, static["listing"])
    return {
        "board": board_of(static["instruments"]),
        "is_st": listed & (days[:, None] >= static["st_start"]) & (days[:, None] < static["st_end"]),
        "listed_days": np.where(static["list_date"] < days[0], LONG_AGO, np.maximum(age, 0)),
    }


def trading_days(start: str = START, end: str = END) -> tuple[np.ndarray, np.ndarray]:
    """Weekdays without the fixed holiday weeks: ([t] datetime64[D], [t] bool last trading day of its month)."""
    return _calendar(start, end)[:2]


def _calendar(start: str, end: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`trading_days`, and the trading days after the last one that a label reaches."""
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
    count = int((days <= last).sum())
    if not count:
        raise ConfigError(f"demo market: no trading day between {start} and {end}")
    return days[:count], month_end[:count], days[count : count + len(signal.LABEL_LAGS)]
