"""Rotation among ETFs by the scores of their members, inside Qlib's back-test or the fast engine."""

from __future__ import annotations

from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger

from qlib_ext.data.universe import member_spans
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.portfolio.aggregate import MOST_WEIGHT, Aggregate, aggregate_scores, one_per_index, ranks, rotate, zscores
from qlib_ext.portfolio.closes import Closes
from qlib_ext.portfolio.engine import last_known
from qlib_ext.portfolio.exchange import Bars
from qlib_ext.portfolio.strategy import ScheduledStrategy
from qlib_ext.store.kept import read_table
from qlib_ext.store.schema import BASKET_DAYS, ETF_CLASSES

logger = get_module_logger("qlib_ext.rotation")
CLASSES = ("sector",)


def lacking(store: str | Path, classes: Sequence[str] | None = CLASSES) -> list[str]:
    """What a store lacks for the rotation of its ETFs, in words; empty where nothing is missing."""
    store = Path(store)
    if classes is not None and (isinstance(classes, str) or not set(classes) or set(classes) - set(ETF_CLASSES)):
        return [f"classes={classes!r}: choose of {list(ETF_CLASSES)} in a list, or null for all ETFs"]
    file, faults = store / "instruments" / "etf.txt", []
    if not (file.is_file() and file.read_text().strip()):
        faults.append("the store has no universe etf: ingest bars of ETFs (a demo store: `python -m qlib_ext.demo --overwrite`)")
    tables = {name: store / "tables" / f"{name}.parquet" for name in ("etf_baskets", "instruments")}
    if not tables["etf_baskets"].is_file():
        faults.append("the store keeps no table etf_baskets: ingest the members of ETFs and their weights, with dates")
    about = pd.read_parquet(tables["instruments"]) if tables["instruments"].is_file() else pd.DataFrame()
    if "tracked_index" not in about:
        faults.append("the store knows no tracked_index of any ETF: add the column to table instruments")
    if classes is not None and not ("etf_class" in about and about["etf_class"].isin(list(classes)).any()):
        faults.append(f"the store knows no ETF of class {' or '.join(classes)}: add etf_class to table instruments, or set classes: null")
    return faults


class PoolDay(NamedTuple):
    """The pool at a close, ``[e]`` by `EtfPool.codes`: listed, of the classes and traded enough (`liquid`), mean `amount` of 5 days, and
    who may not be bought."""

    liquid: np.ndarray
    amount: np.ndarray
    no_buy: np.ndarray


class EtfPool:
    """ETFs of the store in use: what they track, hold and trade, read once.

    Tracked index and class are those of table `instruments`, without dates: as they are today.

    Args:
        classes: ``[sector]``, ``[broad]``, both, or None for all ETFs.
        min_amount_5, min_amount_20: CNY; the mean value traded a day over so many days must be above it (suspended days count 0).
        max_basket_age: calendar days a basket holds good after its date. listed_days: trading days since its first bar from which an ETF
            may be bought.

    Raises:
        ConfigError: the store lacks ETFs, baskets, amounts, or what `classes` needs. DataError: weights of a basket that are negative or
            sum to more than 1.
    """

    index = None
    """No index universe: the record takes its benchmark from here."""

    def __init__(self, classes: Sequence[str] | None = CLASSES, min_amount_5: float = 2e7, min_amount_20: float = 1e7,
                 max_basket_age: int = BASKET_DAYS, listed_days: int = 60):
        store = Path(C.dpm.get_data_uri("day"))
        faults = lacking(store, classes)
        if faults:
            raise ConfigError("ETFs cannot be rotated: " + "; ".join(faults))
        self.closes = Closes(None, listed_days=listed_days, kind="etf")
        self.codes, self.days, self.max_basket_age = self.closes.codes, self.closes.days, max_basket_age
        bars = Bars(self.codes.tolist(), None, None, ["close"], ["amount"])
        if not bars.has("amount").any():
            raise ConfigError("the bars of ETFs have no amount, by which a pool is chosen: ingest it")
        amount, worth = bars.lay("amount"), self.closes.close * bars.lay("volume")       # where the amount is unknown
        amount = np.where(self.closes.close > 0, np.where(np.isfinite(amount), amount, worth), 0.0)
        begun = np.logical_or.accumulate(self.closes.close > 0, axis=0)
        self.amount = {days: pd.DataFrame(np.where(begun, amount, np.nan)).rolling(days).mean().to_numpy() for days in (5, 20)}
        self.min_amount = {5: min_amount_5, 20: min_amount_20}
        about = read_table(store, "instruments").set_index("instrument").reindex(self.codes)
        tracked = about["tracked_index"].fillna("").to_numpy(dtype=str)
        self.tracked = np.where(tracked == "", self.codes, tracked)
        self.inside = np.ones(len(self.codes), bool) if classes is None else about["etf_class"].isin(list(classes)).to_numpy()
        self._read_baskets(read_table(store, "etf_baskets"))

    def _read_baskets(self, table: pd.DataFrame) -> None:
        """Members of all baskets among the stocks, `stocks [n]`, and each ETF's baskets in the order of their dates."""
        self.stocks = np.union1d(np.array(list(member_spans("all")), dtype=str), table["member"].to_numpy(dtype=str))
        sums = table.groupby(["instrument", "date"])["weight"].agg(["sum", "min"])
        wrong = sums[(sums["sum"] > MOST_WEIGHT) | ~(sums["min"] >= 0)]
        if len(wrong):
            (code, date), (total, least) = wrong.index[0], wrong.iloc[0]
            raise DataError(f"the basket of {code} on {date:%Y-%m-%d} has weights from {least:g} that sum to {total:g} ({len(wrong)} such "
                            "baskets): give fractions of the ETF, from 0 up, that sum to 1 (or less, where a part is cash)")
        place = np.searchsorted(self.stocks, table["member"].to_numpy(dtype=str))
        weight, date = table["weight"].to_numpy(float), table["date"].to_numpy().astype("datetime64[D]")
        self.dates = [np.empty(0, "datetime64[D]")] * len(self.codes)
        self.baskets: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in self.codes]
        rows = table.groupby("instrument").indices
        for e, code in enumerate(self.codes.tolist()):
            mine = rows.get(code, np.empty(0, int))
            self.dates[e], which = np.unique(date[mine], return_inverse=True)
            self.baskets[e] = [(place[mine[which == k]], weight[mine[which == k]]) for k in range(len(self.dates[e]))]
        self._laid: tuple[tuple, np.ndarray] = ((), np.empty(0))

    def at(self, day: np.datetime64) -> PoolDay:
        """Who is in the pool at the close of a day.

        Raises:
            DataError: it is no trading day.
        """
        close, t = self.closes.at(day), int(np.searchsorted(self.days, day))
        enough = np.logical_and.reduce([self.amount[days][t] > least for days, least in self.min_amount.items()])
        return PoolDay(self.inside & close.listed & enough, self.amount[5][t], close.no_buy)

    def weights(self, day: np.datetime64) -> tuple[np.ndarray, dict[str, str]]:
        """The last baskets dated up to a day ``[e, n]`` by `stocks`, rows of 0 for ETFs without one; and of those within the pool's classes
        who has none: code -> date of the last basket ("" where there was none)."""
        place = tuple(int(np.searchsorted(dates, day, side="right")) - 1 for dates in self.dates)
        stale = {e for e, k in enumerate(place) if k >= 0 and (day - self.dates[e][k]).astype(int) > self.max_basket_age}
        key = tuple(-1 if e in stale else k for e, k in enumerate(place))
        if key != self._laid[0]:
            laid = np.zeros((len(self.codes), len(self.stocks)))
            for e, k in enumerate(key):
                if k >= 0:
                    members, weight = self.baskets[e][k]
                    laid[e, members] = weight
            self._laid = key, laid
        lost = {str(self.codes[e]): self.last_basket(e, day) for e, k in enumerate(key) if k < 0 and self.inside[e]}
        return self._laid[1], lost

    def last_basket(self, e: int, day: np.datetime64) -> str:
        """Date of an ETF's last basket up to a day, "" without one."""
        k = int(np.searchsorted(self.dates[e], day, side="right")) - 1
        return str(self.dates[e][k]) if k >= 0 else ""

    def benchmarks(self, days: np.ndarray) -> pd.DataFrame:
        """Daily return of the pool, `equal_weight`: one ETF per index as at the close before, alike; NaN where there was none.

        It stands in for the Wind ETF index, whose members and rules are not public.
        """
        close, found = self.closes.close, np.full(len(days), np.nan)
        last = last_known(np.where(close > 0, close, np.nan))
        for row, t in enumerate(np.searchsorted(self.days, np.asarray(days, "datetime64[D]"))):
            pool = self.at(self.days[t - 1]) if t else None
            chosen = one_per_index(pool.liquid, pool.amount, self.tracked) if t else np.zeros(len(self.codes), bool)
            if chosen.any():
                moved = np.where(close[t] > 0, close[t] / last[t - 1] - 1, 0.0)[chosen]
                found[row] = moved.mean()
        return pd.DataFrame({"equal_weight": found}, index=pd.DatetimeIndex(np.asarray(days, "datetime64[ns]")))


class ETFRotationStrategy(ScheduledStrategy):
    """Two to six ETFs alike, by the scores of their members (`qlib_ext.portfolio.aggregate`); it trades only when who is held changes.

    At each close of the schedule: the pool (`EtfPool`), one ETF per index; scores from the last baskets dated up to that close; then
    `rotate`. The entry threshold is a quantile of the pool's scores on the days before, up to `history` trading days back. An ETF
    without a basket, or with too little of it scored, has no score: it is named, and sold. Where no ETF trades enough the account
    goes to cash, which is said; fewer than `min_holdings` ETFs leave the rest in cash.

    Args:
        classes, min_amount_5, min_amount_20, max_basket_age: see `EtfPool`. min_coverage, breadth: see `aggregate_scores`.
        enter_rank, exit_rank, min_holdings, max_holdings: see `rotate`. quantile: of the entry threshold.
        history: trading days. min_history: days with scores below which there is no threshold: the `min_holdings` best are held.
        signal, kwargs: see `ScheduledStrategy`; scores are those of stocks.

    Raises:
        ConfigError: a value that is none of these, or a store without ETFs, baskets, amounts.
    """

    def __init__(self, *, signal, classes: Sequence[str] | None = CLASSES, quantile: float = 0.9, enter_rank: int = 6, exit_rank: int = 10,
                 min_holdings: int = 2, max_holdings: int = 6, history: int = 732, min_history: int = 60, min_coverage: float = 0.8,
                 breadth: float = 10.0, min_amount_5: float = 2e7, min_amount_20: float = 1e7, max_basket_age: int = BASKET_DAYS, **kwargs):
        check_options(quantile=quantile, enter_rank=enter_rank, exit_rank=exit_rank, min_holdings=min_holdings, max_holdings=max_holdings,
                      history=history, min_history=min_history, min_coverage=min_coverage, breadth=breadth, min_amount_5=min_amount_5,
                      min_amount_20=min_amount_20, max_basket_age=max_basket_age)
        self.quantile, self.history, self.min_history = quantile, history, min_history
        self.aggregation = {"min_coverage": min_coverage, "breadth": breadth}
        self.limits = {"enter_rank": enter_rank, "exit_rank": exit_rank, "min_holdings": min_holdings, "max_holdings": max_holdings}
        self.pool = EtfPool(classes, min_amount_5, min_amount_20, max_basket_age, kwargs.get("listed_days", 60))
        self.past: dict[np.datetime64, np.ndarray] = {}
        super().__init__(signal=signal, **kwargs)

    @cached_property
    def closes(self) -> Closes:
        """What is known of the ETFs at each close."""
        return self.pool.closes

    def rate(self, day: np.datetime64, scores: pd.Series | pd.DataFrame | None) -> Aggregate | None:
        """Scores of the ETFs at a close; None where the stocks have no scores, or all the same."""
        if scores is None or not len(scores):
            return None
        scores = scores.iloc[:, 0] if isinstance(scores, pd.DataFrame) else scores
        laid = scores.reindex(self.pool.stocks).to_numpy(dtype=float)
        return aggregate_scores(laid, self.pool.weights(day)[0], **self.aggregation) if np.isfinite(zscores(laid)).any() else None

    def threshold(self, day: np.datetime64) -> float:
        """Quantile of the scores of the pools of the days before; NaN where they are too few."""
        t = int(np.searchsorted(self.pool.days, day))
        days = self.pool.days[max(t - self.history, 0):t]
        for past in days:
            if past not in self.past:
                scores = self.signal.get_signal(pd.Timestamp(past), pd.Timestamp(past) + pd.Timedelta(hours=23, minutes=59))
                found, pool = self.rate(past, scores), self.pool.at(past)
                known = np.empty(0) if found is None else found.score[one_per_index(pool.liquid, pool.amount, self.pool.tracked)]
                self.past[past] = known[np.isfinite(known)]
        parts = [self.past[past] for past in days if len(self.past[past])]
        return float(np.quantile(np.concatenate(parts), self.quantile)) if len(parts) >= self.min_history else np.nan

    def target(self, decided, traded, scores, held, exchange) -> pd.Series | None:
        found, pool = self.rate(decided, scores), self.pool.at(decided)
        if found is None:
            logger.warning(f"{decided}: the scores of the stocks do not differ, which ranks no ETF: the portfolio stays as it is")
            return None
        held = held[held > 0]
        held_now = np.isin(self.pool.codes, held.index)
        chosen = one_per_index(pool.liquid, pool.amount, self.pool.tracked, held_now)
        self._name_unscored(decided, chosen, found)
        score, threshold = np.where(chosen, found.score, np.nan), self.threshold(decided)
        can_buy = ~pool.no_buy & ~np.isin(self.pool.codes, self.blacklist)
        kept = rotate(score, held_now, threshold, can_buy, **self.limits)
        self._keep(decided, pool, chosen, found, score, threshold, held_now, kept)
        if self.schedule.first is not None and set(held.index) == set(self.pool.codes[kept]):
            return None
        weights = pd.Series(1 / max(kept.sum(), self.limits["min_holdings"]), index=self.pool.codes[kept])
        self.keep("decisions", pd.DataFrame({"day": str(decided), "instrument": weights.index, "weight": weights.to_numpy()}))
        return weights

    def _check_decided(self) -> None:
        super()._check_decided()
        if not len(self.table("ratings")) and "cash" not in self._warned:
            raise DataError("nothing was decided: the scores of the stocks do not differ on any day of the schedule, which ranks no ETF: "
                            "correct the signal")

    def _name_unscored(self, day: np.datetime64, chosen: np.ndarray, found: Aggregate) -> None:
        """Say, once each, who of the pool has no score; an error where nobody has one."""
        pool, lost = self.pool, self.pool.weights(day)[1]
        if not chosen.any() and "cash" not in self._warned:
            self._warned.add("cash")
            logger.warning(f"{day}: no ETF of the pool trades more than {pool.min_amount[5]:g} CNY a day over 5 days and "
                           f"{pool.min_amount[20]:g} over 20: the account goes to cash (said once; the table ratings has all days)")
        silent = np.flatnonzero(chosen & ~np.isfinite(found.score))
        said = {}
        for e in silent:
            code = str(pool.codes[e])
            if code not in lost:
                said[code] = f"only {found.covered[e]:.0%} of its basket of {pool.last_basket(e, day)} is scored"
            elif lost[code]:
                said[code] = f"its last basket is of {lost[code]}, older than {pool.max_basket_age} days"
            else:
                said[code] = "it has no basket yet"
        if len(silent) and len(silent) == chosen.sum():
            raise DataError(f"{day}: none of the {len(silent)} ETFs of the pool has a score ("
                            + "; ".join(f"{code}: {why}" for code, why in list(said.items())[:5])
                            + "): give predictions of their members, ingest baskets of these days, or start later")
        for code, why in said.items():
            if (code, code in lost) not in self._warned:
                self._warned.add((code, code in lost))
                logger.warning(f"{day}: {code} is left out: {why} (said once)")

    def _keep(self, day: np.datetime64, pool: PoolDay, chosen: np.ndarray, found: Aggregate, score: np.ndarray, threshold: float,
              held: np.ndarray, kept: np.ndarray) -> None:
        at = np.flatnonzero(chosen | held)
        self.keep("ratings", pd.DataFrame({
            "day": str(day), "instrument": self.pool.codes[at], "index": self.pool.tracked[at], "amount": pool.amount[at],
            "score": score[at], "raw": found.raw[at], "covered": found.covered[at], "names": found.names[at],
            "rank": ranks(score)[at], "threshold": threshold, "held": held[at], "kept": kept[at]}))


def check_options(**options) -> None:
    """Refuse keywords of an `ETFRotationStrategy` that nothing can be rotated by; others than those it knows are left alone.

    Raises:
        ConfigError: all faults at once.
    """
    usual = {name: one.default for name, one in signature(ETFRotationStrategy).parameters.items() if name not in ("signal", "kwargs")}
    options, faults = {**usual, **options}, []
    for name in ("enter_rank", "exit_rank", "min_holdings", "max_holdings", "history", "min_history", "max_basket_age"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            faults.append(f"{name}={value!r} must be a whole number above 0")
    for low, high in (("enter_rank", "exit_rank"), ("min_holdings", "max_holdings")):
        if not faults and options[low] > options[high]:
            faults.append(f"{low}={options[low]} must not be above {high}={options[high]}")
    for name, most in (("quantile", 1), ("min_coverage", 1), ("breadth", np.inf), ("min_amount_5", np.inf), ("min_amount_20", np.inf)):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            faults.append(f"{name}={value!r} must be a number from 0 " + ("to 1" if most == 1 else "up"))
    if faults:
        raise ConfigError("ETF rotation: " + "; ".join(faults))
