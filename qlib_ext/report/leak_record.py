"""Leak checks of a fitted model and its dataset as a record of a Qlib workflow."""

from __future__ import annotations

import copy
import pickle
import time
from typing import Callable, Optional

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger
from qlib.utils import init_instance_by_config
from qlib.utils.exceptions import LoadObjectError
from qlib.workflow.record_temp import SignalRecord

from qlib_ext.data.dataset import _expressions, _label_offset_of
from qlib_ext.data.universe import trading_calendar
from qlib_ext.demo.build import read_truth, truth_paths
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report import leak_checks as rules
from qlib_ext.report.leak_checks import CHECKS, CONVENTION, Verdict, checks_frame
from qlib_ext.report.leak_rebuild import rebuild
from qlib_ext.report.leak_variants import (labels_differ, shown_labels, sizes_of, smaller_model, unrecorded, with_shuffled_labels,
                                           with_test_end)
from qlib_ext.report.records import _ReportRecord, run_facts, statement
from qlib_ext.report.runs import first_column
from qlib_ext.report.saved import FOLDERS, save
from qlib_ext.report.table import Table
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.metadata import read_metadata
from qlib_ext.tracking import TAG

logger = get_module_logger("qlib_ext.leaks")
ON_FAIL = ("mark", "raise")
LATER_DAYS = 5
"""Days after t whose inputs must show the noise."""
DEFAULT_LAG = 5


class LeakCheckRecord(_ReportRecord):
    """Five leak checks on a sample, after `SignalRecord`; results go to ``leak_check/``, metrics ``leak.<check>`` (1 passed, 0 failed).

    - ``segment_end``: scores of the first days are the same when the test segment ends earlier, by many days or by one.
    - ``shuffled_labels``: the model, trained anew and briefly on labels shuffled within each day, must not predict.
    - ``delayed_features``: the IC must not collapse when all that the model reads is a day older.
    - ``future_corrupted``: the daily bars after a day t become noise; the dataset, built anew in a fresh process, and the scores must be
      the same up to t.
    - ``too_good``: a test IC above 0.10 on a label of one to five days; on a generated market above the best possible one.

    What passes, and why: `qlib_ext.report.leak_checks`. A check that cannot be made is marked as not run, with the reason.

    Args:
        model, dataset: fitted, as the workflow made them.
        checks: names; None: all.
        seed: of all samples and shuffles.
        on_fail: ``mark``, or ``raise``: the run fails where a check does (the results are saved first).
        tolerance: largest difference of scores that should be the same, over the largest score; the CPU gives 0.
        cuts: earlier ends of the segment. days: days t. shuffles: retrainings.
        epochs, days_per_epoch: of a retraining; for LightGBM 50 rounds. test_days: first days of the test that it is measured on.
        model_options: further keywords of the retrained model, laid over its own.
        min_pairs: stocks a day needs for an IC. label_col: column of the raw label.
        task: configuration with model and dataset; None: the recorder's.
        timeout: seconds for each rebuild of ``future_corrupted``.

    Raises:
        ConfigError: an unknown check or keyword, or a value that cannot work.
    """

    artifact_path, kind = FOLDERS["leaks"], "leaks"
    depend_cls = SignalRecord

    def __init__(self, recorder, model, dataset, checks: Optional[list[str]] = None, seed: int = 0, on_fail: str = "mark",
                 tolerance: float = 1e-6, cuts: int = 2, days: int = 2, shuffles: int = 2, epochs: int = 1, days_per_epoch: int = 60,
                 test_days: int = 240, model_options: Optional[dict] = None, min_pairs: int = 10, label_col: int = 0,
                 task: Optional[dict] = None, timeout: float = 1800.0, **unknown):
        if unknown:
            raise self._refused(unknown)
        super().__init__(recorder)
        self.checks = list(CHECKS) if checks is None else [checks] if isinstance(checks, str) else list(checks)
        strange = [name for name in self.checks if name not in CHECKS]
        if strange or not self.checks:
            hint = did_you_mean(strange[0], CHECKS) if strange else ""
            raise ConfigError(f"LeakCheckRecord: checks {strange or self.checks} unknown or none{hint}; choose from {list(CHECKS)}")
        if on_fail not in ON_FAIL:
            raise ConfigError(f"LeakCheckRecord: on_fail={on_fail!r}; choose one of {list(ON_FAIL)}")
        counts = {"cuts": cuts, "days": days, "shuffles": shuffles, "epochs": epochs, "days_per_epoch": days_per_epoch,
                  "test_days": test_days, "min_pairs": min_pairs, "seed": seed + 1 if type(seed) is int else seed}
        wrong = {name: value for name, value in counts.items() if type(value) is not int or value < 1}
        if wrong:
            raise ConfigError(f"LeakCheckRecord: {wrong} must be whole numbers from 1 on (seed: from 0)")
        if not (isinstance(tolerance, (int, float)) and tolerance >= 0 and isinstance(timeout, (int, float)) and timeout > 0):
            raise ConfigError(f"LeakCheckRecord: tolerance={tolerance!r} must not be negative, timeout={timeout!r} must be above 0")
        self.model, self.dataset, self.seed, self.on_fail, self.tolerance = model, dataset, seed, on_fail, tolerance
        self.cuts, self.days, self.shuffles, self.epochs, self.days_per_epoch = cuts, days, shuffles, epochs, days_per_epoch
        self.test_days, self.model_options, self.min_pairs, self.label_col = test_days, dict(model_options or {}), min_pairs, label_col
        self.task, self.timeout = task, timeout

    # ---- the record -------------------------------------------------------------------------------------------------------
    def generate(self, **kwargs) -> pd.DataFrame:
        """Make the checks, save and print them.

        Raises:
            DataError: no predictions in the recorder; with ``on_fail: raise`` a failed check.
        """
        verdicts = self.verdicts()
        frame = checks_frame(verdicts)
        save(self.recorder, self.get_path(), {"checks": Table(frame, CONVENTION)}, self.kind, self._known())
        self._tell(verdicts, frame)
        failed = [name for name, verdict in verdicts.items() if verdict.passed is False]
        if failed and self.on_fail == "raise":
            raise DataError("; ".join(f"leak check {name} failed: {verdicts[name].what}" for name in failed))
        return frame

    def verdicts(self) -> dict[str, Verdict]:
        """The checks alone: nothing is saved.

        Raises:
            DataError: no predictions in the recorder.
        """
        self._load()
        found = {}
        for name in self.checks:
            started = time.perf_counter()
            logger.info(f"leak check {name} ...")
            found[name] = self._verdict(getattr(self, f"_{name}"))
            logger.info(f"leak check {name}: {_word(found[name])} ({time.perf_counter() - started:.1f} s)")
        return found

    def _load(self) -> None:
        """Scores, raw labels and configuration out of the recorder."""
        try:
            self.scores = first_column(self.recorder.load_object("pred.pkl")).dropna().sort_index()
        except LoadObjectError as error:
            raise DataError(f"the recorder has no predictions ({error}): list SignalRecord before LeakCheckRecord") from error
        if not len(self.scores):
            raise DataError("the predictions in the recorder are empty")
        try:
            label = self.recorder.load_object("label.pkl")
        except LoadObjectError:
            label = None
        if isinstance(label, pd.Series):
            label = label.to_frame()
        if label is not None and len(label) and self.label_col >= label.shape[1]:
            raise ConfigError(f"label_col={self.label_col}, but label.pkl has {label.shape[1]} columns: {list(label.columns)}")
        self.label = None if label is None or not len(label) else first_column(label.iloc[:, [self.label_col]]).rename("label")
        if self.task is None:
            try:
                self.task = self.recorder.load_object("task")
            except LoadObjectError:
                self.task = {}
        self.test = pd.DatetimeIndex(self.scores.index.get_level_values("datetime").unique().sort_values())
        self.own = _copy_of(self.model)  # predictions leave the model that others use as it is
        handler = getattr(self.dataset, "handler", None)
        found = _expressions(handler, "label") or [None]
        self.expression = found[min(self.label_col, len(found) - 1)]
        try:
            reach = getattr(self.dataset, "offset", None) or (_label_offset_of(handler) if handler is not None else None)
        except ConfigError:  # an expression that Qlib does not count
            reach = None
        self.lag, self.span = DEFAULT_LAG if reach is None else max(reach - 1, 0), rules.label_days(self.expression)
        self.alike: Optional[bool] = None

    def _verdict(self, check: Callable[[], Verdict]) -> Verdict:
        try:
            return check()
        except Exception as error:  # the run is done; a check that cannot be made must not undo it
            logger.debug("leak check", exc_info=True)
            return Verdict(None, f"not run: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _tell(self, verdicts: dict[str, Verdict], frame: pd.DataFrame) -> None:
        self.recorder.log_metrics(**{f"leak.{name}": float(v.passed) for name, v in verdicts.items() if v.passed is not None})
        self.recorder.log_metrics(**{f"leak.{name}.figure": float(v.figure) for name, v in verdicts.items() if np.isfinite(v.figure)})
        states = {_word(verdict): None for verdict in verdicts.values()}
        state = "failed" if "FAILED" in states else "not all run" if "not run" in states else "passed"
        failed = ", ".join(name for name, verdict in verdicts.items() if verdict.passed is False)
        self.recorder.set_tags(**{f"{TAG}leak_check": state, f"{TAG}leak_check_failed": failed or "none"})
        shown = frame[["figure", "limit"]].assign(result=[_word(verdict) for verdict in verdicts.values()])[["result", "figure", "limit"]]
        print(f"Leak checks (sampled):\n{shown.to_string(float_format='{:.4g}'.format, na_rep='-')}")
        for name, verdict in verdicts.items():
            line = f"leak check {name}: {_word(verdict)}: {verdict.what}" + (f" [{verdict.sample}]" if verdict.sample else "")
            grave, odd = verdict.passed is False, verdict.passed is None or verdict.warning
            (logger.error if grave else logger.warning if odd else logger.info)(line)

    def _known(self) -> dict:
        """Facts about the run, as all reports have them."""
        facts, _ = run_facts(self.recorder)
        return {**facts, "index": None, "scored": [f"{self.test[0]:%Y-%m-%d}", f"{self.test[-1]:%Y-%m-%d}"], "seed": self.seed,
                "statement": statement(facts), "notes": []}

    # ---- segment_end ------------------------------------------------------------------------------------------------------
    def _segment_end(self) -> Verdict:
        draw = np.random.default_rng([self.seed, 1])
        points = rules.cut_points(len(self.test), self.cuts, draw)
        if not points:
            return Verdict(None, f"not run: {len(self.test)} scored days are too few to cut")
        self._need_same_scores()
        differences = {}
        for count in points:
            last, before = self.test[count - 1], self.test[count - 2]
            part, shorter = self._scores(last), self._scores(before)
            differences[f"test up to {last:%Y-%m-%d} and up to {self.test[-1]:%Y-%m-%d}"] = \
                rules.largest_difference(self.scores[_days(self.scores) <= last], part)
            differences[f"test up to {before:%Y-%m-%d} and one day more"] = rules.largest_difference(part[_days(part) <= before], shorter)
        sample = f"test ends after {', '.join(map(str, points))} of {len(self.test)} days, and after one day less"
        return rules.judge_segment_end(differences, self.tolerance, sample)

    def _scores(self, last: pd.Timestamp) -> pd.Series:
        """What the fitted model says on the test up to a day."""
        with unrecorded():
            found = first_column(self.own.predict(with_test_end(self.dataset, last))).dropna().sort_index()
        if len(found) and _days(found).max() > last:
            raise DataError(f"asked for scores up to {last:%Y-%m-%d}, the model gave some up to {_days(found).max():%Y-%m-%d}: make "
                            "predict follow the dataset's segments")
        return found

    def _need_same_scores(self) -> None:
        """Raises DataError where the model says two things about the same days: equality would then show nothing."""
        if self.alike is None:
            last = self.test[min(2, len(self.test) - 1)]
            self.alike = rules.largest_difference(self._scores(last), self._scores(last)) <= self.tolerance
        if not self.alike:
            raise DataError("two predictions of the same days differ by more than the tolerance: make the model's predictions repeatable")

    # ---- shuffled_labels --------------------------------------------------------------------------------------------------
    def _shuffled_labels(self) -> Verdict:
        if "model" not in self.task:
            return Verdict(None, "not run: the recorder keeps no task, which says how the model is made: give `task`")
        config = smaller_model(self.task["model"], self.epochs, self.days_per_epoch, self.model_options)
        trainer = config["kwargs"].get("trainer")
        last, daily = self.test[min(self.test_days, len(self.test)) - 1], {}
        for number in range(self.shuffles):
            logger.info(f"leak check shuffled_labels: retraining {number + 1} of {self.shuffles}")
            shuffled = with_shuffled_labels(self.dataset, self.seed + number)
            if not labels_differ(self.dataset, shuffled):
                return Verdict(None, f"not run: labels of {type(self.dataset).__name__} could not be shuffled")
            with unrecorded():
                if trainer is not None:  # one of this package's models: other weights to begin with
                    trainer["seed"] = self.seed + number
                model = init_instance_by_config(copy.deepcopy(config))
                model.fit(shuffled)
                scores = first_column(model.predict(with_test_end(shuffled, last))).rename("score")
            known = {"the true labels": self._labels()[lambda label: _days(label) <= last], **shown_labels(shuffled, last)}
            for name, label in known.items():
                table = pd.concat({"label": label, "score": scores}, axis=1, join="inner")
                daily[f"{name} (shuffle {number + 1})"] = rules.daily_ics(table, self.min_pairs, constant=0.0)["score"].to_numpy()
        sample = (f"{self.shuffles} retrainings of {config['class']} ({sizes_of(config)}), measured up to {last:%Y-%m-%d}, "
                  f"{min(self.test_days, len(self.test))} days")
        return rules.judge_shuffled(daily, self.lag, sample)

    # ---- delayed_features, too_good ---------------------------------------------------------------------------------------
    def _labels(self) -> pd.Series:
        if self.label is None:
            raise DataError("the recorder has no raw labels: use a handler that keeps them (those of qlib_ext.data.handler)")
        return self.label

    def _delayed_features(self) -> Verdict:
        calendar = trading_calendar()
        scores = {str(delay): rules.delayed(self.scores, calendar, delay) for delay in range(3)}
        daily = rules.daily_ics(pd.concat({"label": self._labels(), **scores}, axis=1, join="inner"), self.min_pairs)
        sample = f"{len(daily)} test days, the scores of one and two trading days before in the place of the day's"
        return rules.judge_delayed([daily[name].to_numpy() for name in scores], self.lag, self.span, sample)

    def _too_good(self) -> Verdict:
        table = pd.concat({"label": self._labels(), "score": self.scores}, axis=1, join="inner")
        metadata, truth = _store(C.dpm.get_data_uri("day"))
        best = None
        if metadata is not None and metadata.get("generated"):
            if truth is None:
                return Verdict(None, "not run: the market is generated, and its true expectation is gone: build the demo again")
            best = 0.0 if truth.get("switches", {}).get("null") else self._best(table)
        daily = rules.daily_ics(table, self.min_pairs)["score"]
        return rules.judge_too_good(daily.to_numpy(), self.lag, self.span, f"{len(daily)} test days", best)

    def _best(self, table: pd.DataFrame) -> float:
        """IC of the true expectation on the same pairs."""
        expected = pd.read_parquet(truth_paths(C.dpm.get_data_uri("day"))[1]).set_index(["date", "instrument"])["expected"]
        expected.index = expected.index.set_levels(expected.index.levels[1].astype(str), level=1)
        best = table.assign(score=expected.reindex(table.index).to_numpy())
        return float(rules.daily_ics(best, self.min_pairs)["score"].mean())

    # ---- future_corrupted -------------------------------------------------------------------------------------------------
    def _future_corrupted(self) -> Verdict:
        if not isinstance((self.task.get("dataset") or {}).get("kwargs", {}).get("handler"), dict):
            return Verdict(None, "not run: the recorder keeps no task with the handler's configuration: give `task`")
        possible = np.arange(1, len(self.test) - LATER_DAYS)
        if not len(possible):
            return Verdict(None, f"not run: {len(self.test)} scored days are too few")
        self._need_same_scores()
        draw, found = np.random.default_rng([self.seed, 2]), []
        for place in np.sort(draw.choice(possible, min(self.days, len(possible)), replace=False)):
            known = self.test[place]
            logger.info(f"leak check future_corrupted: the store with noise after {known:%Y-%m-%d} ({len(found) + 1} of {self.days})")
            before = [self.test[draw.integers(place)], known]
            found.append(rebuild(self.task["dataset"], self.own, self.dataset, self.scores, known, before,
                                 list(self.test[place + 1:place + 1 + LATER_DAYS]), int(draw.integers(2**31)), self.timeout))
        sample = (f"noise after {', '.join(one.day for one in found)}; inputs of these days and of one day before each, "
                  f"{sum(one.scores for one in found)} scores; index members, fundamentals and risk snapshots as they are")
        return rules.judge_corrupted(found, self.tolerance, sample)


# ---- the rest -----------------------------------------------------------------------------------------------------------------
def _copy_of(model):
    try:
        return pickle.loads(pickle.dumps(model))
    except Exception:  # a model that does not pickle: Qlib's recorder could not keep it either
        return model


def _days(series: pd.Series) -> pd.DatetimeIndex:
    return series.index.get_level_values("datetime")


def _word(verdict: Verdict) -> str:
    return "not run" if verdict.passed is None else "FAILED" if not verdict.passed else "passed, look" if verdict.warning else "passed"


def _store(store) -> tuple[Optional[dict], Optional[dict]]:
    """Metadata of a store made by this package, and the truth beside a generated one."""
    try:
        metadata = read_metadata(store)
    except DataError:
        metadata = None
    return metadata, read_truth(store) if metadata is not None and metadata.get("generated") else None
