"""A panel in one file (or in small shards): made where Qlib is, trained where only torch and numpy are."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np

from qlib_ext.data.panel import Block, Panel
from qlib_ext.errors import ConfigError, DataError

FORMATS = (1, 2)
"""2: a block has several bars a day."""
SHARD_MIB = 48
MAX_SHARDS = 1000


def pack_panel(panel: Panel, path: str | Path, dtype: str = "float32", shard_mib: float | None = None) -> list[Path]:
    """Write a panel with its segments to one file, or to shards ``<path>.000, <path>.001, ...``.

    Args:
        panel: blocks with a `transform` must use a function importable by name.
        path: the file; an existing pack is replaced at the end, when the new one is complete.
        dtype: ``float32``, or ``float16`` for the feature values (half the size; error up to 2^-11 of the value).
        shard_mib: cut into shards of at most this many MiB; the first one carries the number of shards.

    Returns:
        The files written.

    Raises:
        ConfigError: unknown dtype, a shard size that is not positive or needs more than 1000 shards, a transform that cannot be
            imported by name.
        DataError: float16 cannot hold a value (beyond 65504).
    """
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype={dtype!r}: a panel is packed as 'float32' or 'float16'")
    if shard_mib is not None and shard_mib <= 0:
        raise ConfigError(f"shard_mib={shard_mib}: a shard needs a positive size")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            np.savez(file, **_arrays(panel, dtype))
        parts = [aside] if shard_mib is None else _split(aside, int(shard_mib * 2**20))
        files = [path] if shard_mib is None else [path.with_name(f"{path.name}.{k:03d}") for k in range(len(parts))]
        for part, file in zip(parts, files):
            part.replace(file)
        for old in {path, *_shards(path)} - set(files):
            old.unlink(missing_ok=True)
        return files
    finally:
        for left in (aside, *_shards(aside)):
            left.unlink(missing_ok=True)


def load_panel(path: str | Path) -> Panel:
    """Read what `pack_panel` wrote, from one file or from its shards.

    Raises:
        DataError: nothing there, a shard missing or damaged, or not a pack.
    """
    path = Path(path)
    if path.is_file():
        source: Path | io.BytesIO = path
    elif _shards(path):
        source = _join(path)
    else:
        raise DataError(f"{path}: no packed panel here (neither the file nor {path.name}.000); make one with "
                        "`python -m qlib_ext pack WORKFLOW.yaml PACK`")
    try:
        with np.load(source, allow_pickle=False) as stored:
            return _panel(stored)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a packed panel, or damaged ({error}); pack it again") from error
    except Exception as error:  # zipfile.BadZipFile and its kin
        if isinstance(error, (ConfigError, DataError)):
            raise
        raise DataError(f"{path}: damaged pack ({type(error).__name__}: {error}); pack it again") from error


def _arrays(panel: Panel, dtype: str) -> dict[str, np.ndarray]:
    header = {"format": 2 if any(block.bars > 1 for block in panel.blocks.values()) else 1, "blocks": {},
              "label_names": panel.label_names, "segments": panel.segments,
              "missing_rows": panel.missing_rows, "meta": panel.meta, "day_aux": list(panel.day_aux),
              "stock_aux": list(panel.stock_aux)}
    arrays = {"rows": panel.rows, "days": panel.days.astype("datetime64[D]").astype(np.int64),
              "instruments": np.asarray(panel.instruments, dtype=np.str_), "universe": np.packbits(panel.universe, axis=1),
              "label": panel.label, "label_eval": panel.label_eval, "label_raw": panel.label_raw}
    for name, block in panel.blocks.items():
        transform = None if block.transform is None else _name(block.transform, name)
        header["blocks"][name] = {"window": block.window, "columns": list(block.columns), "transform": transform, "bars": block.bars}
        if dtype == "float16" and np.nanmax(np.abs(block.values[:-1]), initial=0.0) > np.finfo(np.float16).max:
            raise DataError(f"block {name!r} holds values beyond 65504, which float16 cannot hold; pack as float32, or normalise")
        arrays[f"block.{name}"] = block.values.astype(dtype, copy=False)
    arrays.update({f"day_aux.{name}": values for name, values in panel.day_aux.items()})
    shared = {name for name, block in panel.blocks.items() if block.values is panel.stock_aux.get(name)}   # windows of an aux entry
    arrays.update({f"stock_aux.{name}": values for name, values in panel.stock_aux.items() if name not in shared})
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    return arrays


def _panel(stored) -> Panel:
    header = json.loads(stored["header"].tobytes())
    if header["format"] not in FORMATS:
        raise DataError(f"packed panel of format {header['format']}, this version reads {FORMATS}; pack it again")
    rows = stored["rows"]
    blocks = {}
    for name, info in header["blocks"].items():
        blocks[name] = Block(stored[f"block.{name}"], info["window"], info["columns"], _function(info["transform"]), info.get("bars", 1))
    universe = np.unpackbits(stored["universe"], axis=1, count=rows.shape[1]).astype(bool)
    return Panel(blocks=blocks, rows=rows, days=stored["days"].astype("datetime64[D]"), instruments=stored["instruments"],
                 universe=universe, label=stored["label"], label_eval=stored["label_eval"], label_raw=stored["label_raw"],
                 label_names=header["label_names"], day_aux={k: stored[f"day_aux.{k}"] for k in header["day_aux"]},
                 stock_aux={k: stored[f"stock_aux.{k}"] if f"stock_aux.{k}" in stored.files else blocks[k].values
                            for k in header["stock_aux"]}, missing_rows=header["missing_rows"],
                 segments={k: tuple(v) for k, v in header["segments"].items()}, meta=header["meta"])


def _name(function, block: str) -> str:
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        found = _function(name)
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not function:
        raise ConfigError(f"the transform of block {block!r} ({function!r}) must be a function importable by name: "
                          "define it with `def` at the top of a module")
    return name


def _function(name: str | None):
    if name is None:
        return None
    import importlib
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _shards(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.glob(f"{path.name}.[0-9][0-9][0-9]"))


def _remove_stale(path: Path) -> None:
    """Remove what processes left that were killed while they packed to this path."""
    for left in path.parent.glob(f".{path.name}.writing-*"):
        process = left.name.split(".writing-")[1].split(".")[0]
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, ValueError):
            left.unlink(missing_ok=True)
        except PermissionError:  # it runs, and belongs to somebody else
            continue


def _split(whole: Path, size: int) -> list[Path]:
    """Shards ``<whole>.000 ...`` with an 8-byte count and a 32-byte digest in front of their bytes."""
    count = -(-whole.stat().st_size // (size - 40)) if size > 40 else MAX_SHARDS + 1
    if count > MAX_SHARDS:
        raise ConfigError(f"shard_mib={size / 2**20:.6f} cuts {whole.stat().st_size / 2**20:.1f} MiB into more than {MAX_SHARDS} "
                          "shards: make them larger")
    written = []
    with open(whole, "rb") as file:
        for k in range(count):
            body = file.read(size - 40)
            shard = whole.with_name(f"{whole.name}.{k:03d}")
            shard.write_bytes(count.to_bytes(8, "little") + hashlib.blake2b(body, digest_size=32).digest() + body)
            written.append(shard)
    return written


def _join(path: Path) -> io.BytesIO:
    shards, joined, count = _shards(path), io.BytesIO(), None
    for k, shard in enumerate(shards):
        content = shard.read_bytes()
        count = int.from_bytes(content[:8], "little")
        if shard.name != f"{path.name}.{k:03d}" or hashlib.blake2b(content[40:], digest_size=32).digest() != content[8:40]:
            raise DataError(f"{shard}: damaged, or the shard before it is missing; copy the shards again")
        joined.write(content[40:])
    if count != len(shards):
        raise DataError(f"{path}: {len(shards)} shards of {count} are here; copy the others")
    joined.seek(0)
    return joined
