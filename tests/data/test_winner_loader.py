"""The loader of winner styles on tiny stores with snapshots of their own, and the loader that joins several."""
import logging
import pickle

import numpy as np
import pandas as pd
import pytest
from qlib.data import D

from qlib_ext.data.dataset import _check_fit_spans
from qlib_ext.data.loader import MarketStateLoader
from qlib_ext.data.winner_loader import PRESETS, JoinedLoader, WinnerStyleLoader
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.winner_style import STATISTICS, WINDOWS, winner_style, winner_style_names
from qlib_ext.risk import model
from qlib_ext.risk.snapshot import COUNTRY, RiskDay, RiskSnapshot
from qlib_ext.store.snapshots import SnapshotStore
from tiny_market_store import start_qlib, write_store

DAYS = pd.bdate_range("2019-01-01", periods=320)
FIT = dict(fit_start_time="2019-05-01", fit_end_time="2019-12-31")
CODES = [f"SH6000{n:02d}" for n in range(60)]
STYLES = ("beta", "size")
FIRST = 40                                                  # snapshots begin there
MEMBERS = [(code, "2019-01-01", "2019-09-30" if n < 5 else "2030-01-01") for n, code in enumerate(CODES[:40])]


def stock_bars(seed=0):
    """Adjusted closes with gaps, a late listing, special treatment and closes at the limit."""
    draw = np.random.default_rng(seed)
    bars = {}
    for n, code in enumerate(CODES):
        close = 10 * np.exp(np.cumsum(draw.normal(0, 0.02, len(DAYS))))
        close[draw.random(len(DAYS)) < 0.05] = np.nan
        if n in (7, 8):
            close[:100 * (n - 6)] = np.nan                  # listed on day 100 and 200
        up, down = close * 1.1, close * 0.9
        if n in (9, 11):                                    # at a limit, but for rounding
            up, down = np.where((np.arange(len(DAYS)) // 50 == 3) == np.array([[n == 9], [n == 11]]),
                                close * [[1 + 5e-5], [1 - 5e-5]], [up, down])
        bars[code] = {"close": close, "limit_up": up, "limit_down": down, "is_st": np.where(draw.random(len(DAYS)) < 0.03, 1, 0)}
    bars[CODES[10]]["is_st"] = np.full(len(DAYS), np.nan)
    return bars


def write_snapshots(folder, days=DAYS[FIRST:], changed_after=DAYS[-1]):
    """Two styles of nearly all stocks; a day's do not depend on the other days that are written."""
    def records():
        for day in days:
            draw = np.random.default_rng([day > changed_after, day.toordinal()])
            known = [code for code in CODES if draw.random() < 0.97]
            exposure = np.column_stack([np.ones(len(known)), draw.normal(size=(len(known), 2))]).astype(np.float32)
            snapshot = RiskSnapshot(day.to_datetime64(), known, (COUNTRY, *STYLES), exposure, np.eye(3) * 1e-4,
                                    np.full(len(known), 1e-4))
            yield RiskDay(snapshot, np.zeros(3), np.zeros(len(known)), 0.5, np.ones(len(known), bool))

    SnapshotStore(folder).write(records(), {"styles": list(STYLES)})
    return str(folder)


def make_store(folder, bars=None):
    write_store(folder, DAYS, stock_bars() if bars is None else bars, {
        "all": [(code, "2019-01-01", "2030-01-01") for code in CODES], "csi300": MEMBERS, "csi500": MEMBERS[::-1],
        "csi1000": MEMBERS, "empty": []})
    start_qlib(folder)


@pytest.fixture
def snapshots(tmp_path):
    """Qlib on the tiny store; the folder of its snapshots."""
    make_store(tmp_path / "store")
    return write_snapshots(tmp_path / "risk")


def tables():
    """Fields of the store through Qlib, [t, n]."""
    frame = D.features(CODES, ["$close", "$limit_up", "$limit_down", "$is_st"], freq="day")
    return [frame[name].unstack(level="instrument").reindex(index=DAYS, columns=CODES) for name in frame]


def by_hand(folder, universe=None, **options):
    """The raw columns, from Qlib's frames and plain loops."""
    close, up, down, special = tables()
    locked = (close >= up * (1 - 1e-4)) | (close <= down * (1 + 1e-4))
    eligible = pd.DataFrame(False, DAYS, CODES)
    for n, code in enumerate(CODES):
        first = close.index.get_loc(close[code].first_valid_index())
        for t, day in enumerate(DAYS):
            if universe is None:
                eligible.iloc[t, n] = (first == 0 or t - first >= 120) and special.iloc[t, n] != 1
            else:
                eligible.iloc[t, n] = any(c == code and pd.Timestamp(a) <= day <= pd.Timestamp(b) for c, a, b in MEMBERS)
    store = SnapshotStore(folder)
    exposure = np.full((len(DAYS), len(CODES), 2), np.nan)
    exposure[np.isin(DAYS.to_numpy().astype("datetime64[D]"), store.days)] = store.exposures(store.days, CODES)[0]
    return winner_style(close.to_numpy(float), exposure, eligible.to_numpy(), locked.to_numpy(), **options)


def test_values_names_and_normalisation(snapshots, caplog):
    with caplog.at_level(logging.WARNING):
        values, names = WinnerStyleLoader(**FIT, snapshots=snapshots).load(DAYS.to_numpy().astype("datetime64[D]"))
    assert values.dtype == np.float32 and values.shape == (320, 24) and names == winner_style_names(STYLES)
    assert [record.getMessage() for record in caplog.records] == [
        f"winner style: unknown values on 100 of 320 days (2019-01-01 to {DAYS[99]:%Y-%m-%d}, first in winner_mean_5:beta) "
        "become 0"]
    raw = pd.DataFrame(by_hand(snapshots), DAYS, names)
    fit = raw.loc[FIT["fit_start_time"]:FIT["fit_end_time"]]
    scale = 1.4826 * (fit - fit.median()).abs().median()
    np.testing.assert_allclose(values, ((raw - fit.median()) / scale).clip(-3, 3).fillna(0), atol=1e-5)
    assert np.abs(values).max() == 3.0 and (values[:45] == 0).all() and (values[45:, :6] != 0).any(axis=0).all()
    raw_values, _ = WinnerStyleLoader(snapshots=snapshots, normalize=False).load(DAYS)
    np.testing.assert_allclose(raw_values, raw, atol=1e-6)
    assert np.isnan(raw_values[:45]).all()


@pytest.mark.parametrize("spoil", ["season", "special", "locked"])
def test_the_comparison_by_hand_sees_who_counts(snapshots, monkeypatch, spoil):
    from qlib_ext.data import winner_loader
    if spoil == "season":
        monkeypatch.setattr(winner_loader, "LISTED_DAYS", 119)
    elif spoil == "special":
        grid = winner_loader._grid
        monkeypatch.setattr(winner_loader, "_grid", lambda reader, name: np.nan_to_num(grid(reader, name), nan=1.0)
                            if name == "is_st" else grid(reader, name))
    else:
        monkeypatch.setattr(winner_loader, "_LIMIT", 1e-5)
    values, _ = WinnerStyleLoader(snapshots=snapshots, normalize=False).load(DAYS)
    assert not np.allclose(values, by_hand(snapshots), atol=1e-6, equal_nan=True)


def test_a_day_has_the_same_values_whatever_other_days_are_asked(snapshots):
    loader = WinnerStyleLoader(**FIT, snapshots=snapshots)
    whole, _ = loader.load(DAYS)
    some = [250, 61, 319, 61]
    np.testing.assert_array_equal(loader.load(DAYS[some])[0], whole[some])
    assert loader.load(DAYS[:0])[0].shape == (0, 24)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(loader)).load(DAYS)[0], whole)


def test_later_prices_and_snapshots_change_nothing(snapshots, tmp_path):
    loader = WinnerStyleLoader(**FIT, snapshots=snapshots)
    leaking = WinnerStyleLoader(fit_start_time="2019-05-01", fit_end_time=str(DAYS[-1].date()), snapshots=snapshots)
    whole, leaked = loader.load(DAYS)[0], leaking.load(DAYS)[0]
    last = int(DAYS.searchsorted(pd.Timestamp(FIT["fit_end_time"])))
    bars, other = stock_bars(), stock_bars(seed=5)
    make_store(tmp_path / "other", {code: {name: np.r_[values[:last + 1], other[code][name][last + 1:]]
                                           for name, values in fields.items()} for code, fields in bars.items()})
    for used in (loader, leaking):
        used.snapshots = write_snapshots(tmp_path / "risk2", changed_after=DAYS[last])
    changed = loader.load(DAYS)[0]
    assert changed[:last + 1].tobytes() == whole[:last + 1].tobytes()
    assert all(not np.array_equal(changed[t], whole[t]) for t in range(last + 1, len(DAYS)))
    assert leaking.load(DAYS)[0][:last + 1].tobytes() != leaked[:last + 1].tobytes()


def test_presets_and_what_replaces_them(snapshots):
    shapes = {"ten_styles": (WINDOWS, STATISTICS, None), "winner_mean_5_windows": ((5, 10, 20, 30, 60), ("winner_mean",), None),
              "winner_mean_6_windows": ((5, 10, 20, 30, 60, 120), ("winner_mean",), None),
              "index_universes": (WINDOWS, ("winner_mean",), ("csi300", "csi500", "csi1000"))}
    assert PRESETS == shapes
    styles = {"ten_styles": 10, "winner_mean_5_windows": 24, "winner_mean_6_windows": 20, "index_universes": 10}
    for preset, (windows, statistics, universes) in shapes.items():
        assert len(windows) * len(statistics) * len(universes or [None]) * styles[preset] == 120
        values, names = WinnerStyleLoader(snapshots=snapshots, preset=preset, normalize=False).load(DAYS[-1:])
        assert len(names) == len(set(names)) == 120 // styles[preset] * 2 and np.isfinite(values).all()
    assert names[0] == "csi300/winner_mean_5:beta" and names[8] == "csi500/winner_mean_5:beta"
    values, names = WinnerStyleLoader(snapshots=snapshots, preset="index_universes", windows=[7], statistics="winner_std",
                                      universes=["csi300"], quantile=0.3, normalize=False).load(DAYS)
    assert names == ["csi300/winner_std_7:beta", "csi300/winner_std_7:size"]
    expected = by_hand(snapshots, "csi300", windows=(7,), statistics=("winner_std",), quantile=0.3)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_the_default_snapshots_are_prepared(snapshots, monkeypatch):
    calls = []
    monkeypatch.setattr(model, "prepare_snapshots", lambda folder=None: calls.append(folder) or SnapshotStore(snapshots))
    loader = WinnerStyleLoader(**FIT)
    loader.check()
    assert not calls, "checking makes nothing"
    np.testing.assert_array_equal(loader.load(DAYS)[0], WinnerStyleLoader(**FIT, snapshots=snapshots).load(DAYS)[0])
    assert calls == [None]


def test_snapshots_that_do_not_fit(snapshots, tmp_path):
    (tmp_path / "nothing").mkdir()
    for folder in ("nothing", "absent"):
        with pytest.raises(DataError, match=f"{folder} holds no risk snapshots: correct `snapshots`"):
            WinnerStyleLoader(**FIT, snapshots=str(tmp_path / folder)).check()
        assert not (tmp_path / "absent").exists()
    other = write_snapshots(tmp_path / "old", pd.bdate_range("2009-01-01", periods=5))
    with pytest.raises(DataError, match=r"\(5 days\) have no day of the store's calendar"):
        WinnerStyleLoader(**FIT, snapshots=other).load(DAYS)
    stale = write_snapshots(tmp_path / "stale", DAYS[FIRST:300])            # exposures of day 299 are those of day 304
    loader = WinnerStyleLoader(**FIT, snapshots=stale)
    np.testing.assert_array_equal(loader.load(DAYS[:305])[0], WinnerStyleLoader(**FIT, snapshots=snapshots).load(DAYS[:305])[0])
    with pytest.raises(DataError, match=f"1 of 306 days are absent from the risk snapshots in stale.* is {DAYS[305]:%Y-%m-%d}"):
        loader.load(DAYS[:306])
    late = write_snapshots(tmp_path / "late", DAYS[290:])
    with pytest.raises(DataError, match="24 columns have no values or no spread.*first 'winner_mean_5:beta': choose a span"):
        WinnerStyleLoader(**FIT, snapshots=late).load(DAYS)
    with pytest.raises(DataError, match="6 columns.*first 'winner_mean_60:beta'"):
        WinnerStyleLoader("2019-03-15", "2019-05-01", snapshots=snapshots).load(DAYS)


def test_universes_that_do_not_fit(snapshots):
    with pytest.raises(ConfigError, match="universe 'csi50' is not in the store"):
        WinnerStyleLoader(**FIT, snapshots=snapshots, universes=["csi300", "csi50"]).check()
    with pytest.raises(DataError, match="universe 'empty' has no members"):
        WinnerStyleLoader(**FIT, snapshots=snapshots, universes="empty").check()
    WinnerStyleLoader(**FIT, snapshots=snapshots, universes="csi300").check()


def test_days_outside_the_calendar(snapshots):
    with pytest.raises(DataError, match="winner style: 1 of 2 days.*2019-01-05"):
        WinnerStyleLoader(**FIT, snapshots=snapshots).load(["2019-01-05", "2019-01-07"])


def test_a_store_without_limits_and_st(tmp_path):
    bars = {code: {"close": fields["close"]} for code, fields in stock_bars().items()}
    make_store(tmp_path / "store", bars)
    values, _ = WinnerStyleLoader(**FIT, snapshots=write_snapshots(tmp_path / "risk")).load(DAYS[150:])
    assert np.isfinite(values).all() and (values != 0).any(axis=0).all()


@pytest.mark.parametrize("keywords, said", [
    ({}, "WinnerStyleLoader: normalising needs fit_start_time"), ({**FIT, "preset": "eleven"}, "'ten_styles'.*'index_universes'"),
    ({**FIT, "statistics": ["winner_median"]}, "'winner_mean', 'loser_mean', 'winner_std'"), ({**FIT, "windows": []}, "windows"),
    ({**FIT, "windows": [5, 0]}, "windows"), ({**FIT, "quantile": 0}, r"quantile"), ({**FIT, "quantile": 0.51}, "quantile"),
    ({**FIT, "universes": []}, "leave the line out"), ({**FIT, "universes": ["csi300"] * 2}, "different universes"),
    ({**FIT, "clip": 0}, "WinnerStyleLoader: clip"), ({"fit_start_time": "2020-01-01", "fit_end_time": "2019-01-01"}, "empty")])
def test_wrong_settings(keywords, said):
    with pytest.raises(ConfigError, match=said):
        WinnerStyleLoader(**keywords)


# ---- several loaders side by side ---------------------------------------------------------------------------------------------
class Given:
    """A loader of one column, the day's number of the month."""

    def __init__(self, name, **facts):
        self.name, self.checked = name, 0
        for key, value in facts.items():
            setattr(self, key, value)

    def load(self, days):
        return pd.DatetimeIndex(days).day.to_numpy()[:, None], [self.name]

    def check(self):
        self.checked += 1


def part(name, **kwargs):
    return {"class": "WinnerStyleLoader" if name == "winner" else "MarketStateLoader",
            "module_path": "qlib_ext.data.winner_loader" if name == "winner" else "qlib_ext.data.loader", "kwargs": kwargs}


def test_joined_columns(snapshots):
    config = part("winner", **FIT, snapshots=snapshots)
    joined = JoinedLoader([Given("day"), config, part("winner", snapshots=snapshots, universes=["csi300"], normalize=False)])
    values, names = joined.load(DAYS[200:210])
    alone, alone_names = WinnerStyleLoader(**FIT, snapshots=snapshots).load(DAYS[200:210])
    assert values.dtype == np.float32 and values.shape == (10, 49) and names[:25] == ["day", *alone_names]
    np.testing.assert_array_equal(values[:, 0], DAYS[200:210].day)
    np.testing.assert_array_equal(values[:, 1:25], alone)
    assert config == part("winner", **FIT, snapshots=snapshots), "the configuration is left as it was"
    joined.check()
    assert joined.parts[0].checked == 1
    with pytest.raises(ConfigError, match="24 columns come from two parts, the first is 'loser_mean_10:beta'"):
        JoinedLoader([config, config]).load(DAYS[:3])
    with pytest.raises(DataError, match="holds no risk snapshots"):
        JoinedLoader([Given("day"), part("winner", **FIT, snapshots=f"{snapshots}/absent")]).check()


class Handler:
    def get_all_processors(self):
        return []


def test_the_dataset_sees_the_latest_fit(snapshots):
    segments = {"train": ("2019-01-01", "2019-12-31"), "test": ("2020-01-01", "2020-03-02")}
    early, late = part("market", **FIT), part("winner", fit_start_time="2019-05-01", fit_end_time="2020-01-02")
    joined = JoinedLoader([early, late])
    assert joined.normalize and joined.fit_end_time == pd.Timestamp("2020-01-02")
    _check_fit_spans(Handler(), {"market": JoinedLoader([early, part("winner", **FIT)])}, segments)
    for leak in (joined, JoinedLoader([late, early]), JoinedLoader([early, Given("a", fit_end_time=None)]),
                 JoinedLoader([joined, early])):
        with pytest.raises(ConfigError, match="aux 'market' is fitted up to"):
            _check_fit_spans(Handler(), {"market": leak}, segments)
    late["kwargs"]["normalize"] = False
    raw = JoinedLoader([late, Given("a")])
    assert not raw.normalize and raw.fit_end_time is None
    _check_fit_spans(Handler(), {"market": raw, "both": JoinedLoader([raw, early])}, segments)
    assert isinstance(JoinedLoader([early]).parts[0], MarketStateLoader)


@pytest.mark.parametrize("parts, said", [
    ([], "must list loaders"), ({"a": 1}, "must list loaders"),
    ([part("market", **FIT), {"class": "X"}], r"parts\[1\] cannot be made"),
    ([part("market", **FIT, clipp=1)], r"parts\[0\] cannot be made \(TypeError.*clipp"), ([part("market")], "fit_start_time"),
    ([3], r"parts\[0\] is a int, which has no load"),
    ([{"class": "Handler", "module_path": __name__}], r"parts\[0\] is a Handler")])
def test_parts_that_cannot_be(parts, said):
    with pytest.raises(ConfigError, match=said):
        JoinedLoader(parts)
