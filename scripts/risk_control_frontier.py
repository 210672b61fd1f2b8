"""What the style penalty of Meta_RiskControl costs and buys: IC, style exposures and drawdowns over its weight, as table and plot.

    run="python scripts/risk_control_frontier.py --store STORE --index csi1000 --cache CACHE --out OUT --epochs 4 --days-per-epoch 200"
    $run --choose
    $run
    $run --report --window 2024-01-15 2024-02-29

A cell is one weight with one seed: `lam_dev` is the weight, `lam_mom` half of it (0: the same network without any penalty), all else as in
the workflow `meta_risk_control_<index>`. A cell leaves scores of the test segment (Parquet) and a line of JSON in OUT, each of its
portfolios a Parquet of daily returns and active style exposures in OUT/portfolios; what is there is not made again. With `--choose` the
test years are gone and validation figures are shown; whatever opens them is logged in OUT/test_openings.log.

Portfolios: `banded`, the preset `meta`; `free`, the same without its style band; `top`, the best stocks with equal weights. Reversals: the
windows of the test segment in which chasing the styles of the last `--run` days lost most, by the risk model; `--window` adds others.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from incremental_cells import digest, framed, keep_memory, say, shipped_panel
from incremental_evidence import SHORT, WORKFLOWS, log_opening, put, run_cell
from incremental_table import figures, read_cells

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError, ExtError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS, excess_figures
from qlib_ext.training.style_loss import standardized

YEAR = 252
PORTFOLIOS = ("banded", "free", "top")
SCORE = ("IC", "RankIC", "ICIR", "largest", "mean", "standing")


# ---- scores -------------------------------------------------------------------------------------------------------------------
def exposures_of(score: np.ndarray, style: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Correlations ``[t, k]`` of scores ``[p]`` with styles ``[p, k]`` (NaN unknown: 0 after standardising) on each day of ``day [p]``."""
    rows = []
    for one in np.unique(day):
        q, known = score[day == one].astype(float), standardized(torch.from_numpy(style[day == one].astype(float))).numpy()
        spread = q.std()
        rows.append(known.T @ ((q - q.mean()) / spread) / len(q) if spread > 0 else np.zeros(known.shape[1]))
    return np.array(rows)


def score_figures(panel: Panel, scored: tuple, min_pairs: int) -> dict:
    """IC and the like, and how scores lean on styles: `largest` of a day and `mean` over styles, both averaged over days; `standing`, the
    largest of the averages over time, in which chance correlations of single days cancel; `styles`, the averages over time."""
    days, stocks, scores = scored
    found = exposures_of(scores, panel.stock_aux["style"][panel.rows[days, stocks]], days)
    average = found.mean(axis=0)
    return {**figures(framed(panel, days, stocks, scores), min_pairs), "largest": np.abs(found).max(axis=1).mean(),
            "mean": np.abs(found).mean(), "standing": np.abs(average).max(),
            "styles": dict(zip(panel.meta["aux_columns"]["style"], average.tolist()))}


def learner(min_pairs: int):
    """What fits and scores a cell, as `incremental_evidence.run_cell` asks."""
    def learn(panel: Panel, section: dict, score: bool) -> tuple[dict, tuple | None]:
        from qlib_ext.training.__main__ import build_model
        model, started = build_model(section), time.perf_counter()
        model.fit_panel(panel)
        facts = {"fit_seconds": time.perf_counter() - started, "epochs": len(model.history_.epochs),
                 "best_epoch": model.history_.best_epoch,
                 "valid": score_figures(panel, model.predict_panel(panel.view("valid")), min_pairs)}
        if not score:
            return facts, None
        scored = model.predict_panel(panel.view("test"))
        return facts | {"leaning": score_figures(panel, scored, min_pairs)}, scored
    return learn


def configured(section: dict, options, penalty: float, seed: int) -> dict:
    """The workflow's model section with a weight and a seed.

    Raises:
        ConfigError: its loss is another.
    """
    section = copy.deepcopy(section)
    if not isinstance(section["kwargs"].get("loss"), dict) or section["kwargs"]["loss"].get("name") != "style_ic":
        raise ConfigError(f"the workflow's loss is {section['kwargs'].get('loss')}: name one with style_ic")
    changes = {path: getattr(options, key) for key, path in SHORT.items() if getattr(options, key, None) is not None}
    changes |= {"loss.lam_dev": float(penalty), "loss.lam_mom": penalty / 2, "rule": {"name": options.rule}, "trainer.seed": seed,
                "trainer.threads": options.threads, "trainer.progress": False}
    if options.rule == "doubleadapt":
        changes["rule"]["adapt_y"] = False
    for path, value in changes.items():
        put(section["kwargs"], path, value)
    return section


# ---- portfolios ---------------------------------------------------------------------------------------------------------------
class Market:
    """What portfolios are held on and measured by: quotes, benchmark, exposures and factor returns of the store in use."""

    def __init__(self, options):
        import qlib
        qlib.init(provider_uri=options.store, region="cn", logging_level=logging.ERROR)
        from qlib_ext.portfolio.closes import Closes
        from qlib_ext.portfolio.exchange import AShareExchange
        from qlib_ext.portfolio.records import index_returns
        from qlib_ext.risk.model import open_snapshots, prepare_snapshots
        from qlib_ext.store.schema import INDEX_CODES
        self.options = options
        self.closes, self.exchange = Closes(options.index), AShareExchange(options.span[0], None)
        self.index = index_returns(INDEX_CODES[options.index], *options.span)
        self.snapshots = prepare_snapshots() if options.snapshots is None else open_snapshots(options.snapshots)
        self.styles = self.snapshots.settings["styles"]
        self.factor_returns = self.snapshots.factor_returns()[self.styles]
        self._style = None

    def strategy(self, name: str, scores: pd.Series):
        """The strategy behind a portfolio's name."""
        from qlib_ext.portfolio.strategy import IndexEnhancementStrategy, TopKStrategy
        if name == "top":
            return TopKStrategy(signal=scores, topk=self.options.topk, universe=self.options.index)
        optimizer = {"preset": "meta", "missing_styles": self.options.missing_styles}
        if name == "free":
            optimizer["constraints"] = {"style": None}
        return IndexEnhancementStrategy(signal=scores, index=self.options.index, snapshots=str(self.snapshots.folder), infeasible="hold",
                                        optimizer=optimizer)

    def held(self, name: str, scores: pd.Series) -> pd.DataFrame:
        """Daily `net` return, `bench` (total return of the index), `turnover`, and active exposures at the close, a column a style."""
        result = self.strategy(name, scores).simulate(self.exchange, *self.options.span, 1e8, self.index)
        days, codes = result.quotes.days, result.quotes.instruments
        if self._style is None:
            self._style = np.nan_to_num(self.snapshots.exposures(days, codes, self.styles)[0])
        place = np.minimum(self.closes.codes.searchsorted(codes), len(self.closes.codes) - 1)
        index = np.nan_to_num(self.closes.weights[np.searchsorted(self.closes.days, days)][:, place]) * (self.closes.codes[place] == codes)
        active = result.weights() - index / index.sum(axis=1, keepdims=True)
        report = result.report
        frame = pd.DataFrame({"net": report["return"] - report["cost"], "bench": self.closes.benchmarks(days)["total_return"],
                              "turnover": report["turnover"]}, index=report.index)
        return frame.join(pd.DataFrame(np.einsum("tn,tnk->tk", active, self._style), frame.index, self.styles))


def held_of(market: Market, cell, out: Path) -> dict[str, pd.DataFrame]:
    """A cell's portfolios, made where they are not there yet."""
    frames, options = {}, market.options
    for name in PORTFOLIOS:
        own = digest([cell.record["digest"], options.span, options.topk, options.missing_styles, options.index, market.snapshots.settings])
        file = out / "portfolios" / f"{cell.record['cell']}.{name}-{own}.parquet"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}")
            market.held(name, cell.scores["score"]).to_parquet(aside)
            aside.replace(file)
            say(f"{cell.record['cell']}: {name} held")
        frames[name] = pd.read_parquet(file)
    return frames


def reversals(returns: pd.DataFrame, start, end, count: int = 3, run: int = 60, length: int = 20) -> list[dict]:
    """The windows of `length` days inside a span in which chasing styles lost most: ``- sum_k z_k f_k``.

    z is the sum of the `run` returns before the window in standard deviations of such sums (within 2), f that of the window. Windows do not
    overlap. They judge portfolios afterwards: nothing learns from them.

    Args:
        returns: daily factor returns (day x style), NaN unknown.
    """
    within = returns.fillna(0).rolling(length).sum().shift(-length + 1)      # of the window that begins on the day
    before = returns.fillna(0).rolling(run).sum().shift(1)
    lost = -(before / before.std()).clip(-2, 2) * within
    last = returns.index.searchsorted(pd.Timestamp(end), side="right") - length
    total = lost.sum(axis=1, min_count=1).iloc[:max(last + 1, 0)].loc[str(start):].dropna().sort_values(ascending=False)
    found = []
    for day, loss in total.items():
        first = returns.index.get_loc(day)
        window = (day, returns.index[first + length - 1])
        if len(found) < count and loss > 0 and all(window[1] < other["start"] or window[0] > other["end"] for other in found):
            parts = lost.loc[day].nlargest(3)
            found.append({"start": window[0], "end": window[1], "lost": float(loss), "styles": {
                style: (float(before.loc[day, style]), float(within.loc[day, style])) for style in parts.index if parts[style] > 0}})
    return found


def portfolio_figures(daily: pd.DataFrame, factor_returns: pd.DataFrame, windows: list[tuple]) -> dict[str, float]:
    """What a portfolio earned over its index, how it leaned on styles, and what these did to it.

    `style risk` (a year) and `style drawdown` are those of ``sum_k exposure_k(t-1) * factor return_k(t)``; `window n`, `window n drawdown`
    and `window n styles` the excess, its drawdown and the styles' part inside the windows.
    """
    styles = list(factor_returns.columns)
    exposure, known = daily[styles], daily.dropna(subset=["bench"])
    earned = (exposure.shift(1) * factor_returns.reindex(daily.index)).sum(axis=1)
    wealth = earned.cumsum()
    found = {**excess_figures(known["net"], known["bench"]), "turnover a year": daily["turnover"].sum() / 2 * YEAR / len(daily),
             "largest exposure": exposure.abs().max(axis=1).mean(), "mean exposure": exposure.abs().to_numpy().mean(),
             **({"size exposure": exposure["size"].abs().mean()} if "size" in styles else {}), "style return": earned.mean() * YEAR,
             "style risk": earned.std() * YEAR**0.5, "style drawdown": (wealth - wealth.cummax().clip(lower=0)).min()}
    for number, (start, end) in enumerate(windows, 1):
        inside = known.loc[str(start):str(end)]
        if len(inside):
            found[f"window {number}"] = float(((1 + inside["net"]) / (1 + inside["bench"])).prod() - 1)
            found[f"window {number} drawdown"] = excess_figures(inside["net"], inside["bench"])["drawdown"]
            found[f"window {number} styles"] = float(earned.loc[str(start):str(end)].sum())
    return found


# ---- table and plot -----------------------------------------------------------------------------------------------------------
def over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of every figure."""
    groups = rows.drop(columns="seed").groupby(keys)
    return pd.concat({"mean": groups.mean(), "std": groups.std()}, axis=1).swaplevel(axis=1)


def plot(scores: pd.DataFrame, portfolios: pd.DataFrame, file: Path, title: str) -> None:
    """Four pictures: the frontier of scores, active exposures, drawdowns, and what reversals cost."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, ((frontier, exposures), (falls, turns)) = pyplot.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    for name, marker in (("IC", "o"), ("RankIC", "s")):
        frontier.errorbar(scores["standing"]["mean"], scores[name]["mean"], scores[name]["std"], scores["standing"]["std"], marker=marker,
                          label=name, capsize=3)
    for penalty, row in scores.iterrows():
        frontier.annotate(f"{penalty:g}", (row[("standing", "mean")], row[("RankIC", "mean")]), textcoords="offset points", xytext=(5, 5))
    frontier.set(xlabel="largest standing style exposure of scores (correlation)", ylabel="IC", title="penalty: IC against exposure")
    places = np.arange(len(scores))
    windows = [name for name in portfolios.columns.levels[0] if name.startswith("window") and name.endswith("drawdown")]
    for name in portfolios.index.unique("portfolio"):
        own = portfolios.xs(name, level="portfolio").reindex(scores.index)
        exposures.errorbar(places, own["largest exposure"]["mean"], own["largest exposure"]["std"], marker="o", label=name, capsize=3)
        falls.errorbar(places, own["drawdown"]["mean"], own["drawdown"]["std"], marker="o", label=f"{name}: excess", capsize=3)
        falls.errorbar(places, own["style drawdown"]["mean"], own["style drawdown"]["std"], marker="x", ls="--",
                       label=f"{name}: styles' part")
        if windows:
            turns.plot(places, own[[(window, "mean") for window in windows]].mean(axis=1), marker="o", label=name)
    for axes, text, unit in ((exposures, "largest active exposure", "standard deviations"), (falls, "drawdown", "fraction"),
                             (turns, f"drawdown in {len(windows)} style reversals, mean", "fraction")):
        axes.set(xlabel="weight of the penalty", ylabel=unit, title=text, xticks=places, xticklabels=[f"{p:g}" for p in scores.index])
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def report(options) -> None:
    """Portfolios, tables (CSV and text) and the plot of the cells in OUT."""
    out, market = Path(options.out), Market(options)
    cells = read_cells(out)
    log_opening(out, "report", {"cells": [cell.record["cell"] for cell in cells], "span": options.span})
    turns = reversals(market.factor_returns, *options.span, count=options.reversals, run=options.run)
    windows = [*(tuple(pair) for pair in options.window), *((turn["start"], turn["end"]) for turn in turns)]
    scores, held = [], []
    for cell in cells:
        own = {"penalty": float(cell.record["protocol"]), "seed": cell.record["seed"]}
        leaning = cell.record["leaning"]
        scores.append({**own, **{name: leaning[name] for name in SCORE}, **{f"score on {k}": v for k, v in leaning["styles"].items()}})
        held += [{**own, "portfolio": name, **portfolio_figures(frame, market.factor_returns, windows)}
                 for name, frame in held_of(market, cell, out).items()]
    frames = {"scores": (pd.DataFrame(scores), ["penalty"]), "portfolios": (pd.DataFrame(held), ["portfolio", "penalty"])}
    tables = {name: over_seeds(frame, keys) for name, (frame, keys) in frames.items()}
    notes = [f"{out.name}: {len(cells)} cells, {options.span[0]} .. {options.span[1]}, index {options.index}; over seeds"]
    notes += [f"window {number}: {pd.Timestamp(one[0]).date()} .. {pd.Timestamp(one[1]).date()}" for number, one in enumerate(windows, 1)]
    for turn in turns:
        told = [f"{style} {was:+.3f} in {options.run} days, then {then:+.3f}" for style, (was, then) in turn["styles"].items()]
        notes.append(f"reversal from {turn['start'].date()}: {', '.join(told)}")
    for name, (frame, _) in frames.items():
        frame.to_csv(out / f"{name}_cells.csv", index=False)
        tables[name].to_csv(out / f"{name}.csv")
        means = tables[name].xs("mean", axis=1, level=1)
        notes += ["", f"{name}, means:", means.T.to_string(float_format="{:.4f}".format)]
    (out / "frontier.txt").write_text("\n".join(notes) + "\n", encoding="utf-8")
    plot(tables["scores"], tables["portfolios"], out / "frontier.png", notes[0])
    say("\n".join(notes))


def run(options) -> None:
    """Every weight with every seed."""
    if options.universe:
        os.environ["QLIB_EXT_UNIVERSE"] = options.universe
    workflow = WORKFLOWS / f"{options.workflow or f'meta_risk_control_{options.index}'}.yaml"
    panel = shipped_panel(workflow, options.store, options.cache)
    from qlib_ext.workflow import load_workflow
    torch.set_num_threads(options.threads)
    keep_memory()
    section = load_workflow(workflow)["task"]["model"]
    for seed in options.seeds:
        for penalty in options.penalties:
            run_cell(panel, learner(options.min_pairs), configured(section, options, penalty, seed), Path(options.out), "penalty",
                     f"{penalty:g}", seed, options.choose, options.min_pairs)
    if options.choose:
        records = [json.loads(file.read_text(encoding="utf-8")) for file in Path(options.out, "choose").glob("*.json")]
        rows = pd.DataFrame([{"penalty": float(record["protocol"]), "seed": record["seed"],
                              **{name: record["valid"][name] for name in SCORE}} for record in records])
        say(over_seeds(rows, ["penalty"]).to_string(float_format="{:.4f}".format))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--store", help="default QLIB_DATA")
    parser.add_argument("--cache", help="folder of packed panels")
    parser.add_argument("--index", default="csi300", help="universe that is enhanced, and that names the workflow")
    parser.add_argument("--workflow", help="another workflow (without .yaml)")
    parser.add_argument("--universe", help="who is scored, where it is not the index: sets QLIB_EXT_UNIVERSE")
    parser.add_argument("--penalties", nargs="+", type=float, default=[0, 0.3, 1, 3, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rule", default="static")
    parser.add_argument("--choose", action="store_true", help="validation figures only, with the test years gone")
    parser.add_argument("--report", action="store_true", help="only portfolios, tables and plot of the cells in --out")
    for name, kind in {"epochs": int, "patience": int, "days_per_epoch": int, "lr": float, "hidden": int, "layers": int,
                       "dropout": float}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--span", nargs=2, default=["2023-01-04", "2024-12-27"], help="of the back-test")
    parser.add_argument("--window", nargs=2, action="append", default=[], metavar=("START", "END"), help="another reversal to look into")
    parser.add_argument("--reversals", type=int, default=3, help="how many are looked for")
    parser.add_argument("--run", type=int, default=60, help="days that a style must have run before it turns")
    parser.add_argument("--topk", type=int, default=50)
    parser.add_argument("--snapshots", help="folder of risk snapshots (default: the store's, made where days are missing)")
    parser.add_argument("--missing-styles", default="error")
    parser.add_argument("--min-pairs", type=int, default=REPORT_MIN_PAIRS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.store = options.store or os.environ.get("QLIB_DATA")
    try:
        if not options.store or not (options.report or options.cache):
            raise ConfigError("give --store and --cache")
        if not options.report:
            run(options)
        if not options.choose:
            report(options)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
