"""Minute bars, trades and orders of the demo market: they agree with the daily bars and with each other, and know what is planted."""

import json
from dataclasses import fields, replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import rankdata

from qlib_ext.demo import intraday
from qlib_ext.demo.__main__ import main
from qlib_ext.demo.counts import allowed_prices
from qlib_ext.demo.intraday import IntradayMaker, IntradayPart, build_intraday, intraday_truth_path
from qlib_ext.demo.intraday_bars import Bars, Quotes, draw_day, make_bars
from qlib_ext.demo.intraday_shape import EFFECTS, STRENGTH, draw_tilts, known_returns
from qlib_ext.demo.market import make_market
from qlib_ext.demo.signal import realised_label
from qlib_ext.demo.streams import STREAMS
from qlib_ext.errors import ConfigError, DataError

TINY = {"stocks": 40, "start": "2015-01-05", "end": "2015-12-31", "index_sizes": (5, 8, 12)}
BARS = [field.name for field in fields(Bars)]
FEW = IntradayPart(stocks=6, first="2015-06-01", last="2015-06-12", tick_stocks=2, tick_days=3)


@pytest.fixture(scope="module")
def tiny():
    return make_market(17, **TINY)


@pytest.fixture(scope="module")
def maker(tiny):
    return IntradayMaker(tiny)


@pytest.fixture(scope="module")
def year(tiny, maker):
    """Every stock-day of the tiny market: day and stock [d], minute bars [d, m]."""
    made = [maker.bars(day, np.arange(40)) for day in range(len(tiny.days))]
    day = np.repeat(np.arange(len(made)), [len(stocks) for stocks, _ in made])
    bars = Bars(**{name: np.vstack([getattr(bars, name) for _, bars in made]) for name in BARS})
    return day, np.concatenate([stocks for stocks, _ in made]), bars


def test_minute_bars_add_up_to_the_daily_ones(tiny, year):
    day, stock, bars = year
    assert len(day) == tiny.trading.sum() and tiny.trading[day, stock].all()
    traded = bars.volume > 0
    for mine, theirs in ((bars.open[:, 0], tiny.open), (np.where(traded, bars.high, 0).max(axis=1), tiny.high),
                         (np.where(traded, bars.low, 10**9).min(axis=1), tiny.low), (bars.close[:, -1], tiny.close)):  # fmt: skip
        np.testing.assert_array_equal(mine / 100.0, theirs[day, stock])
    np.testing.assert_array_equal(bars.volume.sum(axis=1), tiny.volume[day, stock])
    np.testing.assert_allclose(bars.amount.sum(axis=1) / 100.0, tiny.amount[day, stock], rtol=0, atol=0.00501)


def test_every_minute_bar_is_a_possible_one(year):
    bars = year[2]
    traded = bars.volume > 0
    assert (np.maximum(bars.open, bars.close) <= bars.high).all() and (np.minimum(bars.open, bars.close) >= bars.low).all()
    assert (bars.low * bars.volume <= bars.amount).all() and (bars.amount <= bars.high * bars.volume).all()
    assert ((bars.n_trades >= 1) == traded).all() and (bars.n_trades <= bars.volume).all()
    before = np.hstack([bars.open[:, :1], bars.close[:, :-1]])[~traded]
    assert all((getattr(bars, name)[~traded] == before).all() for name in ("open", "high", "low", "close"))
    assert not traded[:, [238, 239]].any() and traded[:, [0, 240]].all()
    assert (bars.high == bars.low)[:, [0, 240]].all()
    share = bars.volume.mean(axis=0)
    assert share[1:31].mean() > 1.5 * share[90:150].mean() < share[208:238].mean() * 1.5


def test_days_that_are_special(tiny, year):
    day, stock, bars = year
    high, low = allowed_prices(tiny)
    flat = (tiny.high == tiny.low)[day, stock]
    locked = flat & ((tiny.close == high) | (tiny.close == low))[day, stock]
    assert locked.sum() > 20 and (bars.high[flat] == bars.low[flat]).all() and (bars.high[flat].max(1) == bars.low[flat].min(1)).all()
    first = np.argmax(tiny.listed, axis=0)
    late = np.flatnonzero(first > 0)
    assert len(late) and all(day[stock == new].min() == first[new] for new in late)
    suspended = tiny.listed & ~tiny.trading
    made = np.zeros_like(suspended)
    made[day, stock] = True
    assert suspended.sum() > 5 and not made[suspended].any()
    paid = (np.nan_to_num(tiny.cash) > 0)[day, stock]
    assert paid.sum() > 0
    np.testing.assert_array_equal(bars.open[paid, 0] / 100.0, tiny.open[day, stock][paid])


def test_a_stock_day_is_the_same_whatever_else_is_made(tiny, maker, year):
    day, stock, bars = year
    shorter = IntradayMaker(make_market(17, **{**TINY, "end": "2015-06-30"}))
    few = np.array([31, 2, 17])
    for at in (0, 60, 110):
        found, made = shorter.bars(at, few)
        rows = [int(np.flatnonzero((day == at) & (stock == one))[0]) for one in found]
        assert list(found) == [one for one in (2, 17, 31) if tiny.trading[at, one]]
        assert all((getattr(made, name) == getattr(bars, name)[rows]).all() for name in BARS)
    one, both = (maker.frames(60, np.array(stocks), np.array([2])) for stocks in ([2], [2, 17, 31]))
    for table in ("trades", "orders"):
        assert one[table].equals(both[table]) and len(one[table])
    part, more = IntradayPart(stocks=5), IntradayPart(stocks=9)
    assert list(part.chosen(tiny)) == list(more.chosen(tiny)[:5]) and len(set(more.chosen(tiny))) == 9


def test_an_average_price_out_of_the_way_is_met(tiny):
    """Quiet stocks, one or two ticks between low and high, averages near an end: the amount is met exactly."""
    generator = np.random.default_rng(0)
    count = 400
    low = generator.integers(100, 900, count)
    width = generator.integers(1, 4, count)
    start, end = (low + generator.integers(0, width + 1) for _ in range(2))
    volume = 100 * generator.integers(110, 3000, count)
    place = low + width * generator.uniform(0.2, 0.8, count)
    quotes = Quotes(start, low + width, low, end, volume, np.rint(volume * place).astype(np.int64), np.full(count, 500.0))
    none = {name: np.zeros(count) for name in EFFECTS}
    bars = make_bars(quotes, none, *draw_day(0, np.arange(count), tiny.days[0]))
    assert (bars.amount.sum(axis=1) == quotes.amount).all() and (bars.volume.sum(axis=1) == volume).all()
    assert (bars.amount >= bars.low * bars.volume).all() and (bars.amount <= bars.high * bars.volume).all()


def minute_of(millisecond: int) -> int:
    """Minute of a trade, counted by hand."""
    if millisecond < 34_200_000:
        return 0
    hour, rest = divmod(millisecond, 3_600_000)
    minutes = hour * 60 + rest // 60_000
    return min(minutes - 570 + 1 if minutes < 720 else minutes - 660 + 1, 240)


def rebuilt(trades: pl.DataFrame) -> dict[int, list]:
    """minute -> open, high, low, close, shares, cents, count of trades, one by one."""
    found: dict[int, list] = {}
    for time, price, quantity in trades.select("millisecond", "price", "quantity").iter_rows():
        ticks = round(price * 100)
        bar = found.setdefault(minute_of(time), [ticks, ticks, ticks, ticks, 0, 0, 0])
        bar[1], bar[2], bar[3] = max(bar[1], ticks), min(bar[2], ticks), ticks
        bar[4:] = [bar[4] + quantity, bar[5] + quantity * ticks, bar[6] + 1]
    return found


def differing_minutes(trades: pl.DataFrame, bars: pl.DataFrame) -> int:
    """Minutes whose bar is not that of the trades."""
    found, count = rebuilt(trades), 0
    for minute, *prices, volume, amount, n_trades in bars.drop("instrument").iter_rows():
        bar = [*(round(price * 100) for price in prices), volume, round(amount * 100), n_trades]
        count += bar != found[minute] if volume else minute in found
    return count


def sample(tiny) -> list[tuple[int, int]]:
    """(day, stock) of usual days, one locked at each limit where there is one, the quietest and the first of a new stock."""
    high, low = allowed_prices(tiny)
    one_price = tiny.trading & (tiny.high == tiny.low)
    cases = [np.argwhere(one_price & (tiny.close == edge))[:1] for edge in (high, low)]
    quiet = np.argwhere(tiny.volume == tiny.volume[tiny.trading].min())[:1]
    late = int(np.flatnonzero(np.argmax(tiny.listed, axis=0))[0])
    return [(80, 4), (150, 12), (int(np.argmax(tiny.listed[:, late])), late), *(tuple(case[0]) for case in (*cases, quiet) if len(case))]


def test_trades_give_the_minute_bars_back(tiny, maker):
    picked = sample(tiny)
    assert len(picked) >= 5
    for day, stock in picked:
        tables = maker.frames(day, np.array([stock]), np.array([stock]))
        trades = tables["trades"]
        assert differing_minutes(trades, tables["bars_1min"]) == 0 and (trades["quantity"] > 0).all()
        assert trades["sequence"].is_sorted() and trades["millisecond"].is_sorted()
        assert all(price == round(price, 2) for price in trades["price"])
        auction = trades["millisecond"].is_in([33_900_000, 54_000_000])
        assert ((trades["side"] == 0) == auction).all() and auction.any()
    moved = trades.with_columns(quantity=pl.col("quantity") + (pl.int_range(pl.len()) == 7).cast(pl.Int64))
    assert differing_minutes(moved, tables["bars_1min"]) == 1


def test_orders_stand_behind_every_trade(tiny, maker):
    high, _ = allowed_prices(tiny)
    for day, stock in sample(tiny):
        tables = maker.frames(day, np.array([stock]), np.array([stock]))
        trades, orders = tables["trades"], tables["orders"]
        entries, gone = orders.filter(pl.col("kind") == 1), orders.filter(pl.col("kind") == -1)
        assert entries["order"].is_unique().all() and gone["order"].is_in(entries["order"].implode()).all() and len(gone)
        used = dict.fromkeys(entries["order"], 0)
        about = {order: (time, side, price) for order, time, side, price
                 in entries.select("order", "millisecond", "side", "price").iter_rows()}  # fmt: skip
        for time, price, quantity, side, buy, sell in trades.drop("instrument", "sequence").iter_rows():
            used[buy] += quantity
            used[sell] += quantity
            assert about[buy][1] == 1 and about[sell][1] == -1 and max(about[buy][0], about[sell][0]) <= time
            assert side == 0 or side == (1 if buy > sell else -1) and min(about[buy][0], about[sell][0]) < time
            assert (about[buy][2] or 1e9) >= price >= (about[sell][2] or 0)
            if price == high[day, stock]:
                assert side <= 0
        for order, quantity in gone.select("order", "quantity").iter_rows():
            used[order] += quantity
        wanted = dict(entries.select("order", "quantity").iter_rows())
        assert all(0 <= used[order] <= wanted[order] for order in wanted) and orders["sequence"].is_sorted()
        assert not set(trades["sequence"]) & set(orders["sequence"])


def test_the_same_seed_gives_the_same_and_another_does_not(tiny, maker):
    again, other = IntradayMaker(make_market(17, **TINY)), IntradayMaker(replace(tiny, seed=18))
    tables = [one.frames(80, np.arange(5), np.arange(2)) for one in (maker, again, other)]
    assert all(tables[0][name].equals(tables[1][name]) for name in ("bars_1min", "trades", "orders"))
    assert not any(tables[0][name].equals(tables[2][name]) for name in ("bars_1min", "trades", "orders"))


def bar_measures(bars: Bars) -> dict[str, np.ndarray]:
    """Plain versions of the six factors of bars, [n]."""
    close, amount, count = bars.close.astype(float), bars.amount[:, 1:], bars.n_trades[:, 1:]
    returns = np.log(close[:, 1:] / np.hstack([bars.open[:, 1:2], close[:, 1:-1]]))
    centred, falls = returns - returns.mean(axis=1, keepdims=True), returns < 0
    size = np.where(count > 0, amount / np.maximum(count, 1), -1.0)
    large = size >= np.quantile(size, 0.7, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "skew": (centred**3).mean(axis=1) / (centred**2).mean(axis=1) ** 1.5,
            "down": (returns**2 * falls).sum(axis=1) / (returns**2).sum(axis=1),
            "reversal": np.log(close[:, 240] / close[:, 30]),
            "tail": bars.volume[:, 211:].sum(axis=1) / bars.volume[:, 1:].sum(axis=1),
            "outflow": (amount * falls).sum(axis=1) / (count * falls).sum(axis=1) / (amount.sum(axis=1) / count.sum(axis=1)),
            "push": (returns * large).sum(axis=1),
        }


PLANTED = {"skew": ("skew", -1), "down": ("skew", 1), "reversal": ("early", -1), "tail": ("tail", -1), "outflow": ("falling", 1),
           "push": ("rising", -1)}  # fmt: skip


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    known = np.isfinite(left) & np.isfinite(right)
    return np.corrcoef(rankdata(left[known]), rankdata(right[known]))[0, 1]


def test_bars_tell_the_true_return_with_the_declared_sign(small):
    maker, found = IntradayMaker(small), {name: [] for name in PLANTED}
    for day in range(3, len(small.days), 6):
        stocks, bars = maker.bars(day, np.arange(90))
        for name, values in bar_measures(bars).items():
            tilt = maker.tilts[PLANTED[name][0]][day, stocks]
            found[name].append((rank_correlation(values, tilt), rank_correlation(values, small.expected[day, stocks])))
    for name, pairs in found.items():
        (own, truth), (_, error) = np.mean(pairs, axis=0), np.std(pairs, axis=0) / np.sqrt(len(pairs))
        assert PLANTED[name][1] * own > 0.25 and PLANTED[name][1] * truth > max(0.05, 3 * error), (name, own, truth)


def test_trades_and_orders_follow_their_tilts(small):
    maker, rows = IntradayMaker(small), []
    for day in range(20, 440, 40):
        stocks = np.flatnonzero(small.trading[day])[::9]
        tables = maker.frames(day, stocks, stocks)
        for stock in stocks:
            mine = {name: frame.filter(pl.col("instrument") == small.instruments[stock]) for name, frame in tables.items()}
            rows.append([maker.tilts[name][day, stock] for name in ("active", "order", "large")] + _morning(mine))
    values = np.array(rows).T
    assert len(rows) > 100 and all(rank_correlation(tilt, measure) > 0.3 for tilt, measure in zip(values[:3], values[3:]))


def _morning(tables: dict[str, pl.DataFrame]) -> list[float]:
    """Shares of the amount from 09:30 to 10:00: net active buying, net unmet new orders, net buying of large orders."""
    trades = tables["trades"].with_columns(amount=pl.col("price") * pl.col("quantity"))
    sizes = pl.concat([trades.group_by(pl.col(name).alias("order")).agg(pl.col("amount").sum()) for name in ("buy_order", "sell_order")])
    log_size = sizes["amount"].log()
    large = sizes.filter(log_size > log_size.mean() + log_size.std())["order"].implode()
    early = trades.filter(pl.col("millisecond").is_between(34_200_000, 35_999_999))
    net = early["amount"] * (early["buy_order"].is_in(large).cast(pl.Int8) - early["sell_order"].is_in(large).cast(pl.Int8))
    traded = pl.concat([trades["buy_order"], trades["sell_order"]]).implode()
    new = tables["orders"].filter(pl.col("millisecond").is_between(34_200_000, 35_999_999), pl.col("kind") == 1)
    new = new.filter(~pl.col("order").is_in(traded))
    sums = (early["amount"] * early["side"]).sum(), (new["price"] * new["quantity"] * new["side"]).sum(), net.sum()
    return [value / early["amount"].sum() for value in sums]


def test_the_null_market_moves_alike_and_tells_nothing(small, small_options):
    null = make_market(5, **small_options, null=True)
    known, tilts = known_returns(null), draw_tilts(null)
    listed = null.listed
    for name, values in tilts.items():
        assert 0.9 < values[listed].std() < 1.1 and abs(np.corrcoef(values[listed], known[listed])[0, 1] - STRENGTH) < 0.05, name
    assert all((values[listed] == 0).all() for values in null.parts.values())
    both = listed & small.listed
    assert np.corrcoef(known[both], known_returns(small)[both])[0, 1] > 0.999
    for market, tells in ((null, False), (small, True)):
        label = realised_label(market.adjusted_close())
        daily = np.array([rank_correlation(values, realised) for values, realised in zip(known_returns(market)[:-6:5], label[:-6:5])])
        assert (daily.mean() > 3 * daily.std() / np.sqrt(len(daily))) == tells


def test_streams_of_the_daily_market_keep_their_numbers():
    assert [STREAMS[name] for name in ("stock", "noise", "event", "etf", "shape", "minute", "tick")] == [0, 6, 10, 20, 21, 22, 23]


@pytest.fixture
def tiny_markets(monkeypatch):
    """What the command line makes in these tests."""
    for module in ("build", "intraday"):
        monkeypatch.setattr(f"qlib_ext.demo.{module}.make_market", lambda seed, **switches: make_market(seed, **TINY, **switches))


COMMAND = ["--seed", "17", "--intraday-stocks", "6", "--intraday-from", "2015-06-01", "--intraday-to", "2015-06-12",
           "--intraday-tick-stocks", "2", "--intraday-tick-days", "3"]  # fmt: skip


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_command_adds_the_folder_and_leaves_the_store_alone(tiny_markets, tmp_path):
    assert main(["--out", str(tmp_path / "demo"), "--seed", "17"]) == 0
    plain = contents(tmp_path / "demo")
    assert main(["--out", str(tmp_path / "demo"), "--intraday", *COMMAND]) == 0
    assert contents(tmp_path / "demo") == plain
    bars = pl.read_parquet(tmp_path / "demo.intraday" / "bars_1min" / "date=2015-06-01" / "part.parquet", hive_partitioning=False)
    assert bars["instrument"].n_unique() <= 6 and bars.columns == ["instrument", "minute", "open", "high", "low", "close", "volume",
                                                                    "amount", "n_trades"]  # fmt: skip
    assert len(list((tmp_path / "demo.intraday" / "trades").iterdir())) == 3
    truth = json.loads((tmp_path / "demo.intraday.truth.json").read_text())
    assert list(truth["effects"]) == list(EFFECTS) and truth["pays"] and truth["span"] == ["2015-06-01", "2015-06-12"]
    assert truth["largest_amount_gap"] == 0 and set(truth["rows"]) == {"bars_1min", "trades", "orders"}
    assert len(truth["instruments"]) == 6 and len(truth["tick_instruments"]) == 2


def test_a_finished_folder_stays_and_an_interrupted_one_is_made_again(tiny_markets, tmp_path, monkeypatch):
    folder = build_intraday(tmp_path / "demo", None, FEW, seed=17)
    first = contents(folder)
    assert folder == tmp_path / "demo.intraday" and first
    with monkeypatch.context() as patch:
        patch.setattr(intraday, "make_market", lambda *_, **__: pytest.fail("made again"))
        assert build_intraday(tmp_path / "demo", None, FEW, seed=17) == folder
        with pytest.raises(DataError, match="asked are .*'seed': 18.*--overwrite"):
            build_intraday(tmp_path / "demo", None, FEW, seed=18)
    write, calls = intraday.write_day, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) > 4:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(intraday, "write_day", stops)
        build_intraday(tmp_path / "demo", None, FEW, seed=18, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.intraday"]
    build_intraday(tmp_path / "demo", None, FEW, seed=17)
    assert contents(folder) == first and intraday_truth_path(folder).is_file()


def test_real_data_in_the_way_are_left_alone(tiny_markets, tmp_path):
    folder = build_intraday(tmp_path / "demo", None, FEW, seed=17)
    settings = folder / "intraday.json"
    settings.write_text(settings.read_text().replace('"generated": true', '"generated": false'))
    with pytest.raises(DataError, match="not generated"):
        build_intraday(tmp_path / "demo", None, FEW, seed=3, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not generated"):
        build_intraday(tmp_path / "demo", tmp_path / "other", FEW, seed=17)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("arguments, words", [
    ({"stocks": 0}, "stocks must be 1 or more"), ({"tick_days": -1}, "tick_days 0 or more"), ({"first": "soon"}, "must be a date"),
    ({"first": "2015-06-01", "last": "2015-05-01"}, "lies before"), ({"first": ""}, "must be a date"),
])  # fmt: skip
def test_a_part_that_cannot_be(arguments, words):
    with pytest.raises(ConfigError, match=words):
        IntradayPart(**arguments)


def test_a_part_the_market_does_not_have(tiny_markets, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no trading day"):
        build_intraday(tmp_path / "demo", None, IntradayPart(first="2031-01-01"), seed=17)
    with pytest.raises(ConfigError, match="asked of 40"):
        build_intraday(tmp_path / "demo", None, replace(FEW, stocks=41), seed=17)
    assert not list(tmp_path.iterdir())
    assert main(["--out", str(tmp_path / "demo"), "--intraday", "--intraday-from", "never"]) == 1
    assert "ConfigError" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "demo"), "--intraday-stocks", "5"])
    assert "--intraday-stocks needs --intraday" in capsys.readouterr().err
