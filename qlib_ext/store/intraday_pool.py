"""Days computed one after another, or by several processes: what is done stays done, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import Iterator, Optional, Sequence

import numpy as np
from tqdm import tqdm

from qlib_ext.errors import DataError
from qlib_ext.store.intraday_days import DayPlan, DayWork, Task

DAYS_A_PROCESS = 16
_THREADS = "POLARS_MAX_THREADS"
_work: Optional[DayWork] = None


def run_days(plan: DayPlan, tasks: Sequence[Task], workers: Optional[int] = 1, title: str = "days") -> list[str]:
    """Compute the results of days; returns what went wrong with some of them, in the order of days.

    Args:
        plan: what is computed. tasks: of which days.
        workers: processes, each with one thread of polars; 1 = this process, with polars' own threads; None = one for each 16 days (to
            start one costs as much as some days do), at most as many as processors.
        title: of the progress bar.

    Raises:
        DataError: a process died.
    """
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(tasks) // DAYS_A_PROCESS)
    workers, faults = min(workers, len(tasks)), {}
    with (tqdm(total=len(tasks), desc=title, unit=" days", mininterval=1, disable=None if tasks else True) as bar,
          closing(_many(plan, tasks, workers) if workers > 1 else _alone(plan, tasks)) as done):
        for day, fault in done:
            if fault:
                faults[day] = fault
            bar.update()
    return [faults[day] for day in sorted(faults)]


def _alone(plan: DayPlan, tasks: Sequence[Task]) -> Iterator[tuple[np.datetime64, str]]:
    work = DayWork(plan)
    for task in tasks:
        yield task.day, _try(work, task)


def _many(plan: DayPlan, tasks: Sequence[Task], workers: int) -> Iterator[tuple[np.datetime64, str]]:
    with _threads(1), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (plan, os.getpid())) as pool:
        futures = {pool.submit(_in_process, task): task.day for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError("a process that computed days was killed, perhaps for want of memory; what is done stays: run the command "
                            "again with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(plan: DayPlan, parent: int) -> None:
    """Prepare a process: the parent alone answers Ctrl-C, and nobody outlives it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _work = DayWork(plan)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _in_process(task: Task) -> str:
    return _try(_work, task)


def _try(work: DayWork, task: Task) -> str:
    """Compute a day; what was wrong with it, "" if nothing."""
    try:
        work.compute(task)
    except DataError as error:
        return str(error)
    return ""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """How many threads polars takes in processes started inside."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(count)
    try:
        yield
    finally:
        os.environ.pop(_THREADS) if before is None else os.environ.update({_THREADS: before})
