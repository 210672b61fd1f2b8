"""From the generated market to a Qlib store, with the truth beside it."""

import json
import logging
import os
import tempfile
from pathlib import Path

from qlib_ext.demo.market import GENERATOR, make_market
from qlib_ext.demo.tables import write_tables
from qlib_ext.demo.truth import STATEMENT, truth_summary, truth_table
from qlib_ext.errors import DataError
from qlib_ext.store import read_metadata

logger = logging.getLogger("qlib_ext.demo")


def build_demo(out: str | Path, seed: int = 0, overwrite: bool = False) -> Path:
    """Generate the demo market and ingest it into a store at `out`; returns the store's folder.

    Beside the store lie `<out>.truth.parquet` (date, instrument, expected: the true conditional expectation of the 5-day label)
    and `<out>.truth.json` (seed, definition, best possible IC by universe and year). The JSON file is written last and carries
    the store's fingerprint: a build that was interrupted is noticed and made again. A complete store of the same seed is left
    as it is.

    Args:
        out: folder of the store; `~` is understood.
        seed: seed of the market.
        overwrite: replace a demo store (never a store of other data).

    Raises:
        DataError: `out` holds data that are not generated, or a complete demo store of another seed while `overwrite` is false.
    """
    from qlib_ext.store.ingest import ingest

    out = Path(out).expanduser().absolute()
    truth_file, table_file = truth_paths(out)
    _check_goal(out)
    if _is_finished(out, seed, overwrite):
        logger.info("demo store %s is there already (seed %d); nothing to do", out, seed)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    market = make_market(seed)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.demo-", dir=out.parent) as folder:
        truth_file.unlink(missing_ok=True)
        tables = write_tables(market, Path(folder) / "tables")
        ingest(tables, out, overwrite=True, generated=True)
        summary = truth_summary(market, read_metadata(out)["fingerprint"])
        truth_table(market).to_parquet(Path(folder) / "truth.parquet", index=False)
        (Path(folder) / "truth.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        os.replace(Path(folder) / "truth.parquet", table_file)
        os.replace(Path(folder) / "truth.json", truth_file)
    totals = {name: values["total"] for name, values in summary["best_possible_ic"].items()}
    logger.info("demo store %s: best possible IC %s. %s", out, totals, STATEMENT)
    return out


def truth_paths(out: str | Path) -> tuple[Path, Path]:
    """(`<out>.truth.json`, `<out>.truth.parquet`) of a demo store."""
    out = Path(out).expanduser().absolute()
    return out.with_name(f"{out.name}.truth.json"), out.with_name(f"{out.name}.truth.parquet")


def read_truth(out: str | Path) -> dict | None:
    """The truth summary beside a store; None where there is none that belongs to the store as it is now."""
    truth_file, table_file = truth_paths(out)
    if not (truth_file.is_file() and table_file.is_file()):
        return None
    try:
        summary = json.loads(truth_file.read_text(encoding="utf-8"))
        metadata = read_metadata(out)
    except (ValueError, DataError):
        return None
    belongs = isinstance(summary, dict) and metadata is not None and summary.get("store_fingerprint") == metadata["fingerprint"]
    return summary if belongs else None


def _check_goal(out: Path) -> None:
    """Refuse an `out` that holds anything but a generated store."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    metadata = read_metadata(out)
    if metadata is None or not metadata.get("generated"):
        raise DataError(f"{out} holds a store of data that are not generated; it is left alone: give another --out")


def _is_finished(out: Path, seed: int, overwrite: bool) -> bool:
    """Whether the finished demo store of this seed and generator is there and may stay."""
    summary = None if overwrite else read_truth(out)
    if summary is None:
        return False
    found = (summary.get("seed"), summary.get("generator"))
    if found != (seed, GENERATOR):
        raise DataError(
            f"the demo store at {out} has seed {found[0]} and generator version {found[1]}, asked are {seed} and {GENERATOR}; "
            "give --overwrite to replace it, or another --out"
        )
    return True
