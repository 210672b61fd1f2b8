"""From the generated market to a Qlib store, with the truth beside it."""

import json
import logging
import os
import tempfile
from pathlib import Path

from qlib_ext.demo.market import GENERATOR, make_market
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import write_tables
from qlib_ext.demo.truth import STATEMENT, truth_summary, truth_table
from qlib_ext.errors import DataError
from qlib_ext.store import read_metadata
from qlib_ext.store.metadata import own_fingerprint

logger = logging.getLogger("qlib_ext.demo")


def build_demo(out: str | Path, seed: int = 0, overwrite: bool = False, drift: bool = False, null: bool = False,
               size_groups: bool = False) -> Path:
    """Generate the demo market and ingest it into a store at `out`; returns the store's folder.

    Beside the store lie `<out>.truth.parquet` (date, instrument, expected: the true conditional expectation of the 5-day label)
    and `<out>.truth.json` (seed, switches, definition, best possible IC by universe and year, and of each part of the signal,
    counts of special cases, version of the ETFs). The JSON file is written last and carries the store's fingerprint: a build that
    was interrupted is noticed and made again. A complete store of the same seed and switches is left as it is; one that an older
    version of the generator made is replaced.

    Args:
        out: folder of the store; `~` is understood.
        seed: seed of the market.
        overwrite: replace a demo store (never a store of other data).
        drift, null, size_groups: switches of `make_market`.

    Raises:
        ConfigError: more than one switch.
        DataError: `out` holds data that are not generated, or a complete demo store of another seed or other switches while
            `overwrite` is false.
        OSError: the folder of `out` cannot be made or written; raised before the market is generated.
    """
    from qlib_ext.store.ingest import ingest

    out = Path(out).expanduser().absolute()
    truth_file, table_file = truth_paths(out)
    _check_goal(out)
    switches = {"drift": bool(drift), "null": bool(null), "size_groups": bool(size_groups)}
    if _is_finished(out, seed, switches, overwrite):
        logger.info("demo store %s is there already (seed %d); nothing to do", out, seed)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.demo-", dir=out.parent) as folder:
        market = make_market(seed, **switches)
        truth_file.unlink(missing_ok=True)
        tables = write_tables(market, Path(folder) / "tables", etfs=True)
        sizes = dict(zip(INDEX_NAMES, market.index_sizes, strict=True))
        ingest(tables, out, overwrite=True, generated=True, index_sizes=sizes)
        summary = truth_summary(market, read_metadata(out)["fingerprint"])
        truth_table(market).to_parquet(Path(folder) / "truth.parquet", index=False)
        (Path(folder) / "truth.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        os.replace(Path(folder) / "truth.parquet", table_file)
        os.replace(Path(folder) / "truth.json", truth_file)
    logger.info("demo store %s: %s. %s", out, best_ic_text(summary), STATEMENT)
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
    belongs = isinstance(summary, dict) and metadata is not None and summary.get("store_fingerprint") == own_fingerprint(metadata)
    return summary if belongs else None


def best_ic_text(summary: dict) -> str:
    """The best possible IC of every universe over all years, from a truth summary, as words."""
    totals = {name: values["total"] for name, values in summary["best_possible_ic"].items()}
    known = ", ".join(f"{name} {total:.4f}" for name, total in totals.items() if total is not None)
    return f"best possible IC: {known}" if known else "no signal: best possible IC 0"


def _check_goal(out: Path) -> None:
    """Refuse an `out` that holds anything but a generated store."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    metadata = read_metadata(out)
    if metadata is None or not metadata.get("generated"):
        raise DataError(f"{out} holds a store of data that are not generated; it is left alone: give another --out")


def _is_finished(out: Path, seed: int, switches: dict[str, bool], overwrite: bool) -> bool:
    """Whether the finished demo store of this seed, these switches and this generator is there and may stay."""
    summary = None if overwrite else read_truth(out)
    if summary is None:
        return False
    generator = summary.get("generator", 0)
    if generator < GENERATOR:
        logger.warning("the demo store at %s was made by generator version %s; it is generated data and is replaced by that of "
                       "version %s", out, generator, GENERATOR)  # fmt: skip
        return False
    found = (summary.get("seed"), summary.get("switches"), generator)
    if found != (seed, switches, GENERATOR):
        raise DataError(
            f"the demo store at {out} has seed {found[0]}, switches {_names(found[1])} and generator version {found[2]}, "
            f"asked are {seed}, {_names(switches)} and {GENERATOR}; give --overwrite to replace it, or another --out"
        )
    return True


def _names(switches: dict[str, bool] | None) -> str:
    return "+".join(name for name, is_on in (switches or {}).items() if is_on) or "none"
