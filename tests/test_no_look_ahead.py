"""Nothing dated t uses what is published after the close of t: the tables are corrupted after t, ingested again, and
everything is built anew in a fresh process. Each check is shown to catch a planted leak.

Run as a script it is that process: ``python test_no_look_ahead.py STORE OUT`` writes the arrays of every variant to OUT.npz.
"""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
KNOWN = "2016-06-15"                 # t: after the fit segments, in the middle of a month and of the test segment
MARKET_END, SHORT_END = "2016-09-30", "2016-07-15"
SEGMENTS = {"train": ["2015-01-01", "2015-12-31"], "valid": ["2016-01-01", "2016-03-31"], "test": ["2016-04-01", "2016-09-20"]}
REACH, WINDOW, UNIVERSE = 6, 8, "csi1000"
FIELDS = ["$close/$open", "Mean($close, 20)/$close", "$volume/Mean($volume, 10)", "$vwap/$close", "$change", "$turnover",
          "$is_st", "$industry", "Log($float_cap)", "Log($float_shares)", "$csi300_weight", "$csi500_weight", "$csi1000_weight",
          "$factor", "Std($amount, 10)/$amount", "$limit_up/Ref($close, 1)", "$limit_down/Ref($close, 1)", "Log($total_cap)",
          "$net_profit_ttm/$equity", "Log($sales_y0)", "$total_debt/$total_assets", "$report_age", "$cash_dividend"]
PLANTED_FEATURE = "Ref($close, -1)/$close"


# ---- the corruption -----------------------------------------------------------------------------------------------------------
def corrupt(tables: dict[str, pd.DataFrame], known: str, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The tables with everything after the day `known` replaced by noise; the days themselves stay."""
    draw, known, tables = np.random.default_rng(seed), pd.Timestamp(known), {name: table.copy() for name, table in tables.items()}
    bars = tables["bars"]
    ended = bars["instrument"].isin(bars["instrument"].unique()[[3, 8, 21]])
    bars = tables["bars"] = bars[~(ended & (bars["date"] > known))].reset_index(drop=True)
    for table in (bars, tables["index_bars"]):
        _noisy_prices(table, table["date"] > known, draw)
    later = np.flatnonzero(bars["date"] > known)
    halted = draw.random(len(later)) < 0.1
    volume = np.where(halted, 0, bars.loc[later, "volume"] * draw.lognormal(0, 1, len(later)) + 100).astype(np.int64)
    bars.loc[later, "volume"] = volume
    for name in ("open", "high", "low"):
        bars.loc[later[halted], name] = bars.loc[later[halted], "close"]
    amount = np.where(draw.random(len(later)) < 0.2, np.nan, volume * bars.loc[later, "close"])
    bars.loc[later, "amount"] = amount.astype(np.float32)
    for name, sigma in (("turnover", 1.0), ("factor", 0.004)):  # larger jumps that no close shows would be refused
        bars.loc[later, name] = (bars.loc[later, name] * draw.lognormal(0, sigma, len(later))).astype(np.float32)
    bars.loc[later, "is_st"] = draw.integers(-1, 2, len(later)).astype(np.int8)
    tables["membership"] = _other_members(tables["membership"], bars, known, draw)
    weights = tables["index_weights"]
    weights.loc[weights["date"] > known, "weight"] *= draw.lognormal(0, 1, int((weights["date"] > known).sum()))
    weights["weight"] *= 100 / weights.groupby("date")["weight"].transform("sum")
    weights.loc[weights["date"] <= known, "weight"] = tables["index_weights"].loc[weights["date"] <= known, "weight"]
    industry = tables["industry"]
    industry.loc[(industry["start"] <= known) & (industry["end"] > known), "end"] = known + pd.Timedelta(days=20)
    industry["l1_latest"] = draw.permutation(industry["l1_latest"].to_numpy())
    shares = tables["float_shares_monthly"]
    noise = np.where(shares["month"] > known, draw.lognormal(0, 1, len(shares)), 1.0)
    shares[["float_shares", "total_shares"]] = shares[["float_shares", "total_shares"]].mul(noise, axis=0)
    reports = tables["fundamentals"]
    numbers = [name for name in reports if pd.api.types.is_float_dtype(reports[name])]
    published = (reports["announcement"] > known).to_numpy()
    reports[numbers] *= np.where(published[:, None], draw.lognormal(0, 1, (len(reports), len(numbers))), 1.0)
    reports["announcement"] += pd.to_timedelta(np.where(published, draw.integers(0, 9, len(reports)), 0), unit="D")
    dividends = tables["dividends"]
    dividends.loc[dividends["ex_date"] > known, "cash"] += draw.uniform(0.01, 1.0)
    return tables


def _noisy_prices(table: pd.DataFrame, later: pd.Series, draw) -> None:
    prices = table.loc[later, ["open", "close"]].to_numpy() * draw.lognormal(0, 0.3, (int(later.sum()), 2))
    table.loc[later, ["open", "close"]] = prices.astype(np.float32)
    table.loc[later, "high"] = (1.02 * prices.max(axis=1)).astype(np.float32)
    table.loc[later, "low"] = (0.98 * prices.min(axis=1)).astype(np.float32)


def _other_members(membership: pd.DataFrame, bars: pd.DataFrame, known: pd.Timestamp, draw) -> pd.DataFrame:
    """Members of today leave on random later days, and others than in truth join."""
    kept = membership[membership["start"] <= known].copy()
    open_ = kept["end"] > known
    kept.loc[open_, "end"] = known + pd.to_timedelta(draw.integers(1, 60, int(open_.sum())), unit="D")
    codes = draw.permutation(np.array(sorted(bars["instrument"].astype(str).unique())))
    start, end = known + pd.Timedelta(days=70), bars["date"].max()
    names = ["csi300"] * 6 + ["csi500"] * 8 + ["csi1000"] * 12
    joined = pd.DataFrame({"instrument": codes[:len(names)], "index": names, "start": start, "end": end, "has_bars": True})
    return pd.concat([kept, joined], ignore_index=True).astype({"start": "datetime64[us]", "end": "datetime64[us]"})


# ---- what the fresh process does ----------------------------------------------------------------------------------------------
def dataset_config(features=None, end=MARKET_END, fit_end="2015-12-31", market_fit_end="2015-12-31", missing_rows="nan") -> dict:
    """A dataset as a workflow writes it; `features` None takes Alpha158, a list of expressions those."""
    segments = copy.deepcopy(SEGMENTS)
    segments["test"][1] = min(segments["test"][1], end)
    label = [[f"Ref($close, -{REACH}) / Ref($close, -1) - 1"], ["LABEL0"]]
    infer = [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "clip_outlier": True}},
             {"class": "Fillna", "kwargs": {"fields_group": "feature"}}]
    ours = "qlib_ext.data.processor"
    learn = [{"class": "DropExtremeLabel", "module_path": ours, "kwargs": {"universe": UNIVERSE, "min_count": 5}},
             {"class": "CSZScoreNorm", "module_path": ours, "kwargs": {"fields_group": "label", "universe": UNIVERSE}}]
    span = {"instruments": "all", "start_time": "2015-01-01", "end_time": end}
    if features is None:
        handler = {"class": "Alpha158", "module_path": "qlib_ext.data.handler", "kwargs": {
            **span, "fit_start_time": "2015-01-01", "fit_end_time": fit_end, "label": label, "drop_raw": True,
            "infer_processors": infer, "learn_processors": learn}}
    else:
        infer[0]["kwargs"].update(fit_start_time="2015-01-01", fit_end_time=fit_end)
        loader = {"class": "QlibDataLoader", "module_path": "qlib.data.dataset.loader",
                  "kwargs": {"config": {"feature": [features, [f"F{k}" for k in range(len(features))]], "label": label}}}
        handler = {"class": "DataHandlerLP", "module_path": "qlib.data.dataset.handler", "kwargs": {
            **span, "data_loader": loader, "infer_processors": infer, "learn_processors": learn}}
    market = {"class": "MarketStateLoader", "module_path": "qlib_ext.data.loader",
              "kwargs": {"fit_start_time": "2015-01-01", "fit_end_time": market_fit_end}}
    return {"class": "PanelDatasetH", "module_path": "qlib_ext.data.dataset", "kwargs": {
        "handler": handler, "segments": segments, "universe": UNIVERSE, "window": WINDOW, "missing_rows": missing_rows,
        "aux": {"market": market}}}


VARIANTS = {
    "alpha158": {}, "fields": {"features": FIELDS}, "filled": {"features": FIELDS, "missing_rows": "ffill_bfill"},
    "leak_fit": {"features": FIELDS, "fit_end": MARKET_END}, "leak_feature": {"features": [*FIELDS, PLANTED_FEATURE]},
    "leak_market": {"features": FIELDS, "market_fit_end": MARKET_END},
}
SOUND = [name for name in VARIANTS if not name.startswith("leak")]
ONLINE = ("alpha158", "fields")


def build(store: str, out: str) -> None:
    """Every variant on one store: features, market, universe, labels, weights and scores, before and after t, to OUT.npz."""
    import qlib
    from qlib.utils import init_instance_by_config

    from qlib_ext.data import dataset as dataset_module

    qlib.init(provider_uri=store, region="cn", kernels=1)
    arrays, datasets, models = {}, {}, {}
    guards = {name: getattr(dataset_module, name) for name in ("_check_fit_spans", "feature_faults")}

    def guard(on: bool) -> None:
        for name, check in guards.items():
            setattr(dataset_module, name, check if on else lambda *arguments: [])

    for name, options in VARIANTS.items():
        if name not in SOUND:  # the dataset refuses the planted leaks; what they would do is shown behind its back
            arrays[f"refused.{name}"] = refused(options)
            guard(False)
        datasets[name] = init_instance_by_config(dataset_config(**options))
        guard(True)
        models[name] = fit(datasets[name].panel(), arrays, name)
        dump(datasets[name].panel(), models[name], arrays, name)
    guard(False)
    for name in ("fields", "leak_fit"):
        short = init_instance_by_config(dataset_config(**{**VARIANTS[name], "end": SHORT_END}))
        arrays[f"ends.{name}"] = other_ends(datasets[name], short, models[name])
    arrays["spans"] = np.array(other_spans(datasets["alpha158"], models["alpha158"]))
    arrays["one_date"] = np.array([one_date(x, day) for x, day in day_batches(datasets["alpha158"].panel("test"))])
    arrays["one_date_qlib"] = np.array([[one_date(x, None) for x in pair] for pair in qlib_batches(datasets["alpha158"])])
    np.savez(out, **arrays)


def refused(options: dict) -> bool:
    """Whether the dataset refuses to be made."""
    from qlib.utils import init_instance_by_config

    from qlib_ext.errors import ConfigError

    try:
        init_instance_by_config(dataset_config(**options))
    except ConfigError:
        return True
    return False


def fit(panel, arrays: dict, name: str) -> list:
    """Small networks fitted on the train segment, stopped on valid; one of them goes on learning from there."""
    from qlib_ext.models.gru import GRU
    from qlib_ext.models.master import MASTER

    trainer = {"epochs": 2, "lr": 1e-3, "days_per_epoch": 12, "device": "cpu", "progress": False, "resume": False, "threads": 1}
    models = [MASTER(d_model=8, temporal_heads=2, stock_heads=1, loss={"name": "weighted_mse"}, trainer=trainer)]
    models += [GRU(hidden_size=8, trainer=trainer)] if name in SOUND else []
    models += [GRU(hidden_size=8, trainer=trainer, rule={"name": "doubleadapt", "task_length": 10})] if name in ONLINE else []
    for number, model in enumerate(models):
        model.fit_panel(panel)
        arrays[f"{name}.known.weights_{number}"] = np.concatenate([p.detach().numpy().ravel() for p in model.net_.parameters()])
    return models


def dump(panel, models: list, arrays: dict, name: str) -> None:
    """`[t, n, ...]` grids up to t (stocks with a row by then), and one grid of each kind after t."""
    t = int(np.searchsorted(panel.days, np.datetime64(KNOWN))) + 1
    stocks = np.flatnonzero((panel.rows[:t] >= 0).any(axis=0))
    arrays[f"{name}.known.instruments"] = panel.instruments[stocks]
    arrays[f"{name}.known.days"] = panel.days[:t].astype(np.int64)
    grids = {"features": panel.blocks["stock"].values[panel.rows], "rows": panel.rows >= 0, "universe": panel.universe,
             "label": panel.label[panel.rows], "label_eval": panel.label_eval[panel.rows],
             "label_raw": panel.label_raw[panel.rows]}
    for number, model in enumerate(models):
        days, places, values = model.predict_panel(panel.view((0, len(panel.days))))
        grids[f"scores_{number}"] = np.full(panel.rows.shape, np.nan, np.float32)
        grids[f"scores_{number}"][days, places] = values
    for kind, grid in grids.items():
        upto = t - REACH if kind.startswith("label") else t          # a label of day d is known REACH days later
        arrays[f"{name}.known.{kind}"] = grid[:upto, stocks]
        arrays[f"{name}.later.{kind}"] = grid[t:]
    arrays[f"{name}.known.market"] = panel.day_aux["market"][:t]
    arrays[f"{name}.later.market"] = panel.day_aux["market"][t:]


def other_ends(dataset, short, models: list) -> bool:
    """Whether the scores are the same when the data that are loaded, and the segment, end earlier."""
    same = True
    for model in models:
        whole, part = model.predict(dataset, "test"), model.predict(short, "test")
        same &= len(part) > 0 and whole.loc[:SHORT_END].equals(part)
    return bool(same)


def other_spans(dataset, models: list) -> list[bool]:
    """Whether the scores are the same when other spans, or single days, are asked for."""
    same = []
    for model in models:
        whole = model.predict(dataset, "test")
        for first, last in (("2016-04-01", "2016-05-10"), ("2016-05-03", "2016-09-20"), ("2016-06-15", "2016-06-15"),
                            ("2016-04-08", "2016-04-08")):
            part = model.predict(dataset, (first, last))
            same.append(len(part) > 0 and whole.loc[first:last].equals(part))
    return same


def one_date(x: np.ndarray, day: int | None) -> bool:
    """Whether windows `[n, l, 2]` of (day, stock) numbers all end on one day, the given one, and hold one stock each."""
    last = x[:, -1, 0]
    one = np.all(last == (last[0] if day is None else day))
    known = np.where(np.isnan(x[:, :, 1]), x[:, -1:, 1], x[:, :, 1])
    lags = x[:, :, 0] - last[:, None] - np.arange(1 - x.shape[1], 1)
    return bool(one and np.all(known == x[:, -1:, 1]) and np.all(np.isnan(lags) | (lags == 0)))


def day_batches(panel):
    """Our batches, with (day, stock) numbers in place of the features."""
    from dataclasses import replace

    from qlib_ext.data.panel import Block
    from qlib_ext.data.sampler import DaySampler

    values = np.full((len(panel.label), 2), np.nan, np.float32)
    day, stock = np.nonzero(panel.rows >= 0)
    values[panel.rows[day, stock]] = np.stack([day, stock], axis=1)
    sampler = DaySampler(replace(panel, blocks={"stock": Block(values, WINDOW, ["day", "stock"])}))
    for day in panel.scored_days():
        batch = sampler.batch(day)
        yield batch.x.numpy(), day


def qlib_batches(dataset, count: int = 5):
    """Batches of Qlib's `TSDataSampler` on the same rows: the first ones as they come (stock-major), then whole days."""
    from qlib.data.dataset import TSDataSampler

    panel = dataset.panel()
    day, stock = np.nonzero(panel.rows >= 0)
    index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(panel.days[day].astype("datetime64[ns]")), panel.instruments[stock]],
                                      names=["datetime", "instrument"])
    frame = pd.DataFrame({"day": day.astype(np.float32), "stock": stock.astype(np.float32)}, index=index)
    sampler = TSDataSampler(frame, *SEGMENTS["test"], step_len=WINDOW)
    days = sampler.get_index().get_level_values("datetime")
    for number in range(count):
        chosen = np.arange(number * 15, number * 15 + 15), np.flatnonzero(days == days[number])
        yield tuple(np.asarray(sampler[places], dtype=np.float32) for places in chosen)


# ---- the tests ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[dict, dict]:
    """Arrays of the true store and of the corrupted one, each built in its own process."""
    from qlib_ext.demo.market import make_market
    from qlib_ext.demo.tables import make_tables
    from qlib_ext.store.ingest import ingest

    folder = tmp_path_factory.mktemp("stores")
    tables = make_tables(make_market(stocks=40, end=MARKET_END, index_sizes=(8, 10, 15)))
    found = []
    for name, content in (("true", tables), ("corrupted", corrupt(tables, KNOWN))):
        ingest(content, folder / name, generated=True)
        command = [sys.executable, __file__, str(folder / name), str(folder / f"{name}.npz")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(folder / f"{name}.npz") as arrays:
            found.append(dict(arrays))
    return tuple(found)


def differing(stores: tuple[dict, dict], variant: str, when: str = "known") -> set[str]:
    """Kinds of arrays that are not bit-equal in the two stores."""
    true, corrupted = stores
    names = [name for name in true if name.startswith(f"{variant}.{when}.")]
    assert names and all(name in corrupted for name in names)
    return {name.rsplit(".", 1)[1] for name in names
            if true[name].shape != corrupted[name].shape or true[name].tobytes() != corrupted[name].tobytes()}


@pytest.mark.parametrize("variant", SOUND)
def test_nothing_up_to_t_changes(stores, variant):
    assert differing(stores, variant) == set()


@pytest.mark.parametrize("variant", SOUND)
def test_everything_after_t_was_changed(stores, variant):
    """Else the corruption shows nothing."""
    scores = {"scores_0", "scores_1"} | ({"scores_2"} if variant in ONLINE else set())
    assert differing(stores, variant, "later") == {"features", "rows", "universe", "label", "label_eval", "label_raw", "market"} | scores


def test_every_feature_was_changed_after_t(stores):
    for variant in ("alpha158", "fields"):
        true, corrupted = (arrays[f"{variant}.known.features"] for arrays in stores)
        assert true.shape[-1] == (158 if variant == "alpha158" else len(FIELDS)) and np.isfinite(true).any(axis=(0, 1)).all()
        true, corrupted = (arrays[f"{variant}.later.features"][:, :30] for arrays in stores)
        same = [column for column in range(true.shape[-1])
                if np.array_equal(true[..., column], corrupted[..., column], equal_nan=True)]
        assert not same, f"columns {same} of {variant} were not corrupted"


@pytest.mark.parametrize("variant, kinds", [("leak_fit", {"features", "scores_0"}), ("leak_feature", {"features", "scores_0"}),
                                            ("leak_market", {"market", "scores_0"})])
def test_a_planted_leak_is_caught(stores, variant, kinds):
    assert kinds <= differing(stores, variant)
    assert stores[0][f"refused.{variant}"], "the dataset took it"


def test_scores_do_not_depend_on_the_end_of_the_data(stores):
    assert stores[0]["ends.fields"] and stores[1]["ends.fields"]
    assert not stores[0]["ends.leak_fit"], "statistics of the whole span were not noticed"


def test_scores_do_not_depend_on_the_other_days_asked_for(stores):
    assert stores[0]["spans"].all() and len(stores[0]["spans"]) == 12


def test_a_batch_holds_one_date(stores):
    assert stores[0]["one_date"].all() and len(stores[0]["one_date"]) > 100
    as_they_come, whole_days = stores[0]["one_date_qlib"].T
    assert not as_they_come.any(), "stock-major batches were not noticed"
    assert whole_days.all()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    build(*sys.argv[1:])
