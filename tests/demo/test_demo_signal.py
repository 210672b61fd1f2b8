"""The planted signal: its expectation against simulated futures, its strength by universe and part, the null market."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo import paths, signal
from qlib_ext.demo.market import LONG_AGO, make_market, trading_days
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.stocks import draw_stocks
from qlib_ext.demo.streams import stream
from qlib_ext.demo.truth import best_ic, part_shares, truth_table
from qlib_ext.market_rules import board_of
from qlib_ext.report.metrics import daily_ic

FUTURES, TODAY = 400, 40


class Forked:
    """A stream whose draws of the days after TODAY come from another seed."""

    def __init__(self, name, future):
        self.sources = stream(3, name), stream(future, name)

    def __getattr__(self, method):
        def draw(*arguments):
            past, future = (getattr(source, method)(*arguments) for source in self.sources)
            past[TODAY + 1 :] = future[TODAY + 1 :]
            return past

        return draw


@pytest.fixture(scope="module", params=[{}, {"drift": True}, {"size_groups": True}], ids=["fixed", "drift", "size_groups"])
def futures(request):
    """Many futures of one day of a tiny market: sums of the daily drifts over the label's days by part [f, n], label [f, n], and
    the closed form today by part [n]."""
    days = trading_days("2015-01-05", "2015-04-10")[0]
    static = draw_stocks(3, 40, days[0])
    static["listing"] = np.full(40, days[0])
    ones = np.ones((len(days), 40), dtype=int)
    status = {"board": board_of(static["instruments"]), "is_st": ones == 0, "listed_days": ones * LONG_AGO}
    later = trading_days("2015-04-11", "2015-04-30")[0][:5]
    path = signal.payoff_path(np.append(days, later), **request.param)
    drifts, labels, closed = {name: [] for name in signal.PARTS}, [], None
    with pytest.MonkeyPatch.context() as patch:
        for future in range(1000, 1000 + FUTURES):
            patch.setattr(paths, "stream", lambda seed, name, future=future: Forked(name, future))
            made = paths.make_paths(3, days, static, status, path)
            daily = signal.daily_parts(made["states"], static["volatility"], path[: len(days)])
            for name in signal.PARTS:
                drifts[name].append(daily[name][TODAY + 1 : TODAY + 6].sum(axis=0))
            labels.append(np.prod(1 + made["returns"][TODAY + 2 : TODAY + 7], axis=0) - 1)
            today = {name: part[TODAY] for name, part in made["parts"].items()}
            assert closed is None or all(np.array_equal(today[name], closed[name]) for name in closed)
            closed = today
    return {name: np.array(values) for name, values in drifts.items()}, np.array(labels), closed


@pytest.mark.parametrize("part", signal.PARTS)
def test_expectation_is_the_mean_of_simulated_drifts(futures, part):
    drifts, _, closed = futures
    mean, error = drifts[part].mean(axis=0), drifts[part].std(axis=0) / np.sqrt(FUTURES)
    paid = error > 0  # leaders receive nothing of the lead-lag
    assert paid.sum() > 10 and (closed[part][~paid] == 0).all()
    assert (abs(mean - closed[part]) < 4.5 * error + 1e-12).all()
    wrong = 1.4 * closed[part]  # about what a lag too few in the sum would give: the test sees it
    assert (abs(mean - wrong)[paid] > 4.5 * error[paid]).any()


def test_expectation_is_the_mean_of_simulated_labels(futures):
    """Through noise, common factors, price limits and compounding."""
    _, labels, closed = futures
    expected = 5 * signal.MEAN_RETURN + sum(closed.values())
    error = labels.std(axis=0) / np.sqrt(FUTURES)
    assert (abs(labels.mean(axis=0) - expected) < 4.5 * error).all()
    slope = np.polyfit(expected, labels.mean(axis=0), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.45)


def test_recursions_against_plain_loops():
    generator = np.random.default_rng(0)
    marks = generator.standard_normal((30, 2))
    order, rho = signal.autoregress(signal.order_products(marks), signal.HALF_LIFE_T), 0.5**0.25
    state = np.zeros(2)
    for day in range(30):
        product = marks[day] * marks[day - 3] if day >= 3 else np.zeros(2)
        state = rho * state + np.sqrt(1 - rho**2) * product if day else product
        np.testing.assert_allclose(order[day], state, atol=1e-12)


def test_payoffs_rotate_on_a_fixed_path():
    days = trading_days("2015-01-05", "2022-12-30")[0]
    assert (signal.payoff_path(days) == 1).all() and (signal.payoff_path(days, null=True) == 0).all()
    path = signal.payoff_path(days, drift=True)
    np.testing.assert_allclose((path**2).mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose((path**2).mean(axis=1), 1.0, atol=1e-9)  # another part pays when one does not
    assert path.min() < 0.01 and path.max() == pytest.approx(2 / np.sqrt(1.5), abs=0.01)
    train, test = (signal.payoff_path(trading_days(f"{a}-01-02", f"{b}-12-30")[0], drift=True) for a, b in ((2018, 2021), (2023, 2024)))
    known = train.mean(axis=0)
    ceiling = np.mean(test @ known / np.linalg.norm(known) / np.linalg.norm(test, axis=1))
    assert 0.4 < ceiling < 0.6          # of the best possible IC, for who knows the mean pay-offs of 2018-2021


def _ic_from_tables(bars, truth, spans):
    """Label, expectation and mean daily correlation by plain pandas from the bars table and the truth table alone."""
    wide = bars.assign(price=bars["adjusted"].where(bars["volume"] > 0)).pivot(index="date", columns="instrument", values="price")
    label = wide.shift(-6) / wide.shift(-1) - 1
    truth = truth.assign(instrument=truth["instrument"].astype(str))
    expected = truth.pivot(index="date", columns="instrument", values="expected").where(wide.notna())
    if spans is not None:
        member = pd.DataFrame(False, index=wide.index, columns=wide.columns)
        for row in spans.itertuples():
            member.loc[row.start : row.end, row.instrument] = True
        label, expected = label.where(member), expected.where(member)
    return label, expected, expected.where(label.notna()).corrwith(label, axis=1)


@pytest.mark.parametrize("universe", ["all", *INDEX_NAMES])
def test_best_possible_ic_is_as_promised(universe, market, tables, bars):
    spans = None if universe == "all" else tables["membership"].query("index == @universe")
    label, expected, daily = _ic_from_tables(bars, truth_table(market), spans)
    recorded = best_ic(market)[universe]
    assert daily.mean() == pytest.approx(recorded["total"], abs=1e-4)
    assert 0.08 <= daily.mean() <= 0.12
    # The truth is an expectation: the label regressed on it has slope one.
    known = label.notna() & expected.notna()
    first = expected.sub(expected.where(known).mean(axis=1), axis=0).where(known).stack()
    second = label.sub(label.where(known).mean(axis=1), axis=0).where(known).stack()
    assert (first * second).sum() / (first**2).sum() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("seed, switches", [(1, {}), (2, {"drift": True})])
def test_other_seeds_keep_the_strength(seed, switches):
    other = make_market(seed, **switches)
    assert all(0.08 <= values["total"] <= 0.12 for values in best_ic(other).values())
    assert other.switches == {"drift": False, "null": False, "size_groups": False, **switches}


def test_parts_have_their_shares(market):
    shares = {name: about["variance_share"] for name, about in part_shares(market).items()}
    promised = {"state": 0.50, "temporal": 0.10, "lead_lag": 0.10, "group": 0.12, "style": 0.18}
    assert shares == pytest.approx(promised, abs=0.03)
    assert all(about["best_ic"]["all"] > 0.02 for about in part_shares(market).values())
    np.testing.assert_allclose(5 * signal.MEAN_RETURN + sum(market.parts.values()), market.expected, rtol=1e-12)


def test_each_part_is_paid_in_the_label(market):
    """The label of the whole market regressed on all five parts at once: every slope about one."""
    label = signal.realised_label(market.adjusted_close())
    rows = np.isfinite(label) & market.trading
    columns = [np.where(rows, values, 0.0) for values in market.parts.values()]
    centred = [values - values.sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True).clip(1) for values in columns]
    x = np.stack([values[rows] for values in centred], axis=1)
    slopes = np.linalg.lstsq(x, label[rows], rcond=None)[0]
    np.testing.assert_allclose(slopes, 1.0, atol=0.3)


def test_one_day_shows_the_signal_under_noise(market):
    """One day's lower and upper shadow says something on the expectation, far from all; so does volume; the gap shows u."""
    top, bottom = np.maximum(market.open, market.close), np.minimum(market.open, market.close)
    with np.errstate(divide="ignore", invalid="ignore"):
        tilt = ((bottom - market.low) - (market.high - top)) / (market.high - market.low)
        volume = np.log(market.volume / market.float_shares)
    for shown, least, state in ((tilt, 0.1, market.expected), (volume, 0.1, market.states["attention"])):
        known = market.trading & np.isfinite(shown)
        assert least < np.corrcoef(shown[known], state[known])[0, 1] < 0.5


def test_null_market_has_no_signal_at_all():
    null = make_market(1, null=True)
    assert all(value is None for values in best_ic(null).values() for value in values.values())
    assert all(about["variance_share"] is None for about in part_shares(null).values())
    assert (null.expected[null.listed] == 5 * signal.MEAN_RETURN).all()
    label = signal.realised_label(null.adjusted_close())
    day, stock = np.nonzero(null.trading)
    states = {name: null.states[name] for name in ("pressure", "attention", "order", "lead", "group")}
    states |= {name: np.broadcast_to(x, label.shape) for name, x in null.states["exposure"].items()}
    states["own volatility"] = np.broadcast_to(null.static["volatility"], label.shape)
    states["special treatment"] = null.is_st.astype(float)
    for name, values in states.items():
        daily = daily_ic(values[day, stock], label[day, stock], day, min_count=3, day_count=len(null.days))
        weekly = daily[np.isfinite(daily)][::5]  # labels that do not overlap
        assert abs(weekly.mean()) < 3.5 * weekly.std() / np.sqrt(len(weekly)), name


def test_switches_touch_nothing_but_the_pay_offs(small, small_options):
    null = make_market(5, **small_options, null=True)
    for name in ("pressure", "attention", "market_state", "order", "lead", "group", "premium"):
        np.testing.assert_array_equal(null.states[name], small.states[name])
    assert not np.array_equal(null.close, small.close, equal_nan=True)
