"""How a vendor writes minute bars, trades and orders: files, names of columns, codes, clocks, words for sides and kinds.

A YAML file, one entry for each of bars, trades and orders that differs; every key may be left out:

    bars:
      columns: {instrument: symbol, datetime: bar_time, open: open_c}   # our name: the vendor's; usual names are found without
      where: {src: level2}                # rows to take: one value, or a list of values
      constants: {exchange: SH}           # one value for all rows
      stamp: end                          # start or end; price: yuan, cent or mil; volume: shares or lots;
      price: cent                         # amount: yuan, thousand or wan; opening_auction: apart, inside or auto
    trades:
      side: {B: buy, S: sell, N: none}    # the vendor's word: ours
      kind: {F: trade, C: cancel}         # of trades; of orders: new, cancel or none (such rows are left out)

The day may stand in a column `datetime`, in `date` beside `time`, or in the file's name; the code in `instrument` (with `exchange` where
it is a bare number), or in the file's name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import date as Date
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

import polars as pl
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.mapping import standard_code

PRICES = ("open", "high", "low", "close")
_PLACE = ("instrument", "exchange", "datetime", "date", "time")
NUMBERS = {"bars": (*PRICES, "volume", "amount", "n_trades"), "trades": ("price", "quantity"), "orders": ("price", "quantity")}
WHOLE = {"bars": (), "trades": ("buy_order", "sell_order", "sequence"), "orders": ("order", "sequence")}
WORDS = {"bars": (), "trades": ("side", "kind"), "orders": ("side", "kind")}
COLUMNS = {kind: (*_PLACE, *NUMBERS[kind], *WHOLE[kind], *WORDS[kind]) for kind in NUMBERS}
REQUIRED = {"bars": (*PRICES, "volume"), "trades": ("price", "quantity"), "orders": ("price", "quantity", "side", "order")}
USUAL_NAMES = {
    "instrument": ("symbol", "code", "ts_code", "stock_code", "sec_code", "securityid", "order_book_id", "ticker"), "exchange": ("market",),
    "datetime": ("trade_time", "timestamp", "bar_time", "date_time"), "date": ("trade_date", "trading_day", "day"),
    "volume": ("vol",), "amount": ("money", "total_turnover"), "n_trades": ("num_trades", "trade_count", "numtrades"),
    "price": ("trade_price", "order_price"), "quantity": ("qty", "volume", "vol", "trade_qty", "order_qty"),
    "side": ("bs_flag", "bsflag", "direction"), "buy_order": ("buy_no", "buy_order_no", "bidorder", "bid_order"),
    "sell_order": ("sell_no", "sell_order_no", "askorder", "ask_order"), "order": ("order_no", "order_id", "orderno"),
    "kind": ("exec_type", "trade_type", "order_type", "order_kind"), "sequence": ("seq", "seq_no", "applseqnum", "biz_index")}
UNITS = {"stamp": ("start", "end"), "price": ("yuan", "cent", "mil"), "volume": ("shares", "lots"), "amount": ("yuan", "thousand", "wan"),
         "opening_auction": ("apart", "inside", "auto")}
SIDES = {"buy": 1, "sell": -1, "none": 0}
KINDS = {"trades": ("trade", "cancel", "none"), "orders": ("new", "cancel", "none")}
_USUAL_SIDES = {"B": "buy", "S": "sell", "N": "none", "BUY": "buy", "SELL": "sell", "66": "buy", "83": "sell", "78": "none", "": "none"}
_USUAL_KINDS = {"trades": {"F": "trade", "C": "cancel", "T": "trade", "D": "cancel", "70": "trade", "67": "cancel"},
                "orders": {"A": "new", "D": "cancel", "65": "new", "68": "cancel", "C": "cancel"}}
_EXCHANGES = {name: code for code, names in {"SH": "SH SSE XSHG SHSE", "SZ": "SZ SZSE XSHE", "BJ": "BJ BSE BJSE XBSE"}.items()
              for name in names.split()}
_KEYS = ("columns", "where", "constants", "side", "kind", *UNITS)
_ENDINGS = (".parquet", ".pq", ".csv", ".csv.gz")
_DATE = r"(\d{4})[-/.]?(\d{1,2})[-/.]?(\d{1,2})"
_CLOCK = r"(\d{1,2}):?(\d{2})(?::?(\d{2}))?(?:[.:]?(\d{1,9}))?(?:\+08:?00)?$"
_BARE = re.compile(r"\s*(\d{1,6})(?:\.0)?\s*")
"""A code without its exchange, also where a table of numbers made it fractional."""
_ZONE = "Asia/Shanghai"


@dataclass(frozen=True)
class Vendor:
    """How one vendor writes one kind of table (`bars`, `trades` or `orders`); the keys of the file above."""

    kind: str
    columns: dict = field(default_factory=dict)
    where: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)
    words: dict = field(default_factory=dict)
    units: dict = field(default_factory=dict)

    def about(self) -> dict:
        """What of it the folder's description keeps."""
        return {name: value for name in ("columns", "where", "constants", "words") if (value := getattr(self, name))}


def deciding(setting):
    """A setting of a table as far as it decides the values: of a mapping all but the vendor's names of columns, which may change."""
    return {name: value for name, value in setting.items() if name != "columns"} if isinstance(setting, dict) else setting


def read_vendor(kind: str, columns: Union[str, Path, Mapping, None] = None, units: Optional[Mapping] = None) -> Vendor:
    """Read and check the mapping of one kind of table; `units` are those given beside it.

    Raises:
        ConfigError: the file is absent or no YAML; unknown keys, columns or words; a unit that is none, or that is given twice
            differently; all named at once.
    """
    given = {} if columns is None else columns if isinstance(columns, Mapping) else _load(Path(columns).expanduser())
    faults = [f"unknown table {name!r}{did_you_mean(name, COLUMNS)}; known are {list(COLUMNS)}" for name in given if name not in COLUMNS]
    entry = given.get(kind) or {}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"the column mapping's entry {kind} must be a mapping with keys of {list(_KEYS)}, not {entry!r}")
    faults += [f"{kind}: unknown key {key!r}{did_you_mean(key, _KEYS)}; known are {list(_KEYS)}" for key in entry if key not in _KEYS]
    parts = {key: entry.get(key) or {} for key in ("columns", "where", "constants", "side", "kind")}
    faults += [f"{kind}: {key} must be a mapping, not {part!r}" for key, part in parts.items() if not isinstance(part, Mapping)]
    if faults:
        raise ConfigError("the column mapping cannot be used:\n  " + "\n  ".join(faults))
    for key in ("columns", "constants"):
        faults += [f"{kind}: {key}: unknown column {name!r}{did_you_mean(name, COLUMNS[kind])}; the table has {list(COLUMNS[kind])}"
                   for name in parts[key] if name not in COLUMNS[kind]]
    numbers = (*NUMBERS[kind], *WHOLE[kind])
    faults += [f"{kind}: constants: {name} must be a number, not {value!r}" for name, value in parts["constants"].items()
               if name in numbers and (type(value) not in (int, float) or not math.isfinite(value))]
    faults += [f"{kind}: constants: {name} cannot be one for all rows" for name in ("datetime", "time") if name in parts["constants"]]
    twice = [name for name in parts["constants"] if name in parts["columns"]]
    faults += [f"{kind}: {name} has a constant and a vendor's column; keep one" for name in twice]
    for key, known in (("side", tuple(SIDES)), ("kind", KINDS.get(kind, ()))):
        faults += [f"{kind}: {key}: {word!r} must become one of {list(known)}, not {ours!r}" for word, ours in parts[key].items()
                   if ours not in known]
    both = {name: entry[name] for name in UNITS if entry.get(name) is not None}
    for name, value in (units or {}).items():
        if value is not None and both.setdefault(name, value) != value:
            faults.append(f"{kind}: {name} is {both[name]!r} in the column mapping and {value!r} beside it; keep one")
    faults += [f"{name}={value!r} must be one of {list(UNITS[name])}" for name, value in both.items() if value not in UNITS[name]]
    if faults:
        raise ConfigError("the source's description cannot be used:\n  " + "\n  ".join(faults))
    words = {key: {str(word): ours for word, ours in parts[key].items()} for key in ("side", "kind") if parts[key]}
    return Vendor(kind, dict(parts["columns"]), dict(parts["where"]), dict(parts["constants"]), words, both)


def _load(path: Path) -> Mapping:
    if not path.is_file():
        raise ConfigError(f"column mapping {path} does not exist; give a YAML file with an entry for bars, trades or orders")
    try:
        given = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"column mapping {path} is no YAML: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(f"column mapping {path} holds no entry; write e.g. 'bars: {{columns: {{volume: vol}}}}'")
    return given


# ---- files --------------------------------------------------------------------------------------------------------------------
def find_files(source: Union[str, Path, Sequence[Union[str, Path]]], without: Path) -> list[Path]:
    """Parquet and CSV files of a source, sorted: files, or folders with their sub-folders (hidden files, and the folder `without`, apart).

    Raises:
        DataError: one does not exist or is of another kind, or there is none.
    """
    found: set[Path] = set()
    for path in [Path(one).expanduser() for one in ([source] if isinstance(source, (str, Path)) else source)]:
        if path.is_dir():
            found |= {file for file in path.rglob("*") if file.name.endswith(_ENDINGS) and file.is_file()
                      and not any(part.startswith(".") for part in file.relative_to(path).parts)}
        elif not path.is_file() or not path.name.endswith(_ENDINGS):
            raise DataError(f"source {path} is no folder and no file ending in {', '.join(_ENDINGS)}")
        else:
            found.add(path)
    found = {file for file in found if without.resolve() not in file.resolve().parents}
    if not found:
        raise DataError(f"source {source}: no file ending in {', '.join(_ENDINGS)}")
    return sorted(found)


def open_source(file: Path, vendor: Vendor) -> pl.LazyFrame:
    """The rows of a file in one form: code, exchange (String), day (Date), clock (Int32, milliseconds since midnight), numbers (Float64),
    order numbers (Int64), words (String); columns the file lacks are null.

    Raises:
        DataError: it cannot be read (a truncated Parquet file), or lacks columns. ConfigError: two columns fit one name.
    """
    frame, schema = _scan(file, vendor)
    names = _named(file, schema, vendor)
    for column, wanted in vendor.where.items():
        if column not in schema:
            raise DataError(f"{file}: the column mapping takes rows by {column!r}, which is not there; it has {list(schema)}")
        frame = frame.filter(pl.col(column).cast(pl.String).is_in([str(one) for one in (wanted if isinstance(wanted, list) else [wanted])]))
    columns = {ours: pl.col(theirs) for ours, theirs in names.items()} | {ours: pl.lit(one) for ours, one in vendor.constants.items()}
    day, clock = _when(file, frame, {ours: schema[theirs] for ours, theirs in names.items()}, columns)
    name = file.name.removesuffix(".gz").rsplit(".", 1)[0]
    code = columns.get("instrument", pl.lit(_standard(name)))
    if "instrument" not in columns and _standard(name) is None:
        raise DataError(f"{file}: no column holds the codes and the file's name is no code; map instrument, it has {list(schema)}")
    exchange = columns.get("exchange", pl.lit(None))
    made = [_text(code).alias("code"), _text(exchange).alias("exchange"), day.alias("day"), clock.alias("clock")]
    for name in NUMBERS[vendor.kind]:
        number = columns.get(name, pl.lit(None)).cast(pl.Float64)
        number = pl.when(number.is_finite()).then(number)
        made.append((number.round(3) if schema.get(names.get(name)) == pl.Float32 and name in (*PRICES, "price") else number).alias(name))
    made += [columns.get(name, pl.lit(None)).cast(pl.Int64).alias(name) for name in WHOLE[vendor.kind]]
    made += [_text(columns.get(name, pl.lit(None)), schema.get(names.get(name))).alias(name) for name in WORDS[vendor.kind]]
    return frame.select(made)


def collect(file: Path, frame: pl.LazyFrame, streaming: bool = False) -> pl.DataFrame:
    """Read what was asked of a file; `streaming` where the order of rows does not matter.

    Raises:
        DataError: it cannot be read, or holds what is no number.
    """
    try:
        return frame.collect(engine="streaming" if streaming else "auto")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> DataError:
    """What to say of a file that polars cannot read: it is damaged, or holds words where numbers belong."""
    said = str(error).splitlines()[0]
    what = "write plain numbers there (2200, not 2,200), or map another column" if re.search("could not parse|conversion from", said) else (
        "copy it again, or leave it out")
    return DataError(f"{file} cannot be read ({type(error).__name__}: {said}): {what}")


def _scan(file: Path, vendor: Vendor) -> tuple[pl.LazyFrame, dict]:
    try:
        if not file.name.endswith((".csv", ".csv.gz")):
            frame = pl.scan_parquet(file, hive_partitioning=False)
            return frame, dict(frame.collect_schema())
        _check_utf8(file)
        header = pl.scan_csv(file, infer_schema_length=0)
        names = _named(file, dict(header.collect_schema()), vendor)
        numbers = {theirs: pl.Int64 if ours in WHOLE[vendor.kind] else pl.Float64 for ours, theirs in names.items()
                   if ours in (*WHOLE[vendor.kind], *NUMBERS[vendor.kind])}
        frame = pl.scan_csv(file, infer_schema_length=0, schema_overrides=numbers, null_values=["", "nan", "NaN", "NULL"])
        return frame, dict(frame.collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(file, error) from error


def stamps_of(file: Path, vendor: Vendor) -> str:
    """The columns of a file that hold days and times, with what stands first in them."""
    frame, schema = _scan(file, vendor)
    names = _named(file, schema, vendor)
    first = collect(file, frame.select(names[ours] for ours in ("datetime", "date", "time") if ours in names).head(1))
    return ", ".join(f"{name} ({str(values[0])!r})" for name, values in first.to_dict().items())


def _check_utf8(file: Path) -> None:
    """Chinese headings of a CSV file are often in another coding."""
    if file.suffix != ".gz" and b"\n" in (start := file.open("rb").read(1 << 16)):
        try:
            start[: start.rindex(b"\n")].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is no UTF-8 text: convert it first, e.g. iconv -f gb18030 -t utf-8") from error


def _named(file: Path, schema: dict, vendor: Vendor) -> dict[str, str]:
    """Our name -> the file's, of the columns it has."""
    small = {name.lower(): name for name in schema}
    names, taken = {}, set(vendor.columns.values())
    for ours in COLUMNS[vendor.kind]:
        if ours in vendor.columns:
            names[ours] = vendor.columns[ours]
            if names[ours] not in schema:
                raise DataError(f"{file}: the column mapping takes {ours} from {names[ours]!r}, which is not there"
                                f"{did_you_mean(names[ours], list(schema))}; it has {list(schema)}")
        elif ours not in vendor.constants:
            fits = [small[ours]] if ours in small else [small[name] for name in USUAL_NAMES.get(ours, ()) if name in small]
            fits = [name for name in fits if name not in taken]
            if len(fits) > 1:
                raise ConfigError(f"{file}: {ours} may be any of {fits}: say which in the column mapping ({vendor.kind}: columns)")
            names.update({ours: fits[0]} if fits else {})
    lacks = [ours for ours in REQUIRED[vendor.kind] if ours not in names and ours not in vendor.constants]
    if lacks:
        raise DataError(f"{file} has no columns for {lacks}: map them ({vendor.kind}: columns); it has {list(schema)}")
    return names


# ---- clocks, codes and words --------------------------------------------------------------------------------------------------
def _when(file: Path, frame: pl.LazyFrame, types: dict, columns: dict) -> tuple[pl.Expr, pl.Expr]:
    """Day and milliseconds since midnight, of whatever columns there are."""
    single = "datetime" if "datetime" in columns else None
    if single is None and "date" not in columns and "time" in columns and _holds_dates(file, frame, types, columns["time"]):
        single = "time"
    if single is None and "date" in columns and "time" not in columns:
        single = "date"
    if single:
        return _day(columns[single], types.get(single)), _of_moment(columns[single], types.get(single))
    if "time" not in columns:
        raise DataError(f"{file}: no column holds the time; map datetime, or date and time; it has {list(types)} of ours")
    if "date" in columns:
        return _day(columns["date"], types.get("date")), _of_clock(columns["time"], types.get("time"))
    for part in (file.name, file.parent.name):
        if found := re.search(r"(?<!\d)(\d{4})[-_]?(\d{2})[-_]?(\d{2})(?!\d)", part):
            try:
                return pl.lit(Date(*map(int, found.groups()))), _of_clock(columns["time"], types["time"])
            except ValueError:
                continue
    raise DataError(f"{file}: no column holds the date and the file's name has none; map datetime, or date")


def _holds_dates(file: Path, frame: pl.LazyFrame, types: dict, column: pl.Expr) -> bool:
    if types["time"] != pl.String:
        return isinstance(types["time"], pl.Datetime)
    first = collect(file, frame.select(column.drop_nulls().head(1))).to_series()
    return len(first) > 0 and re.match(r"\s*\d{4}[-/.]\d|\s*\d{8}[ T]|\s*\d{12,}$", first[0]) is not None


def _local(moment: pl.Expr, kind) -> pl.Expr:
    return moment.dt.convert_time_zone(_ZONE).dt.replace_time_zone(None) if kind.time_zone else moment


def _day(column: pl.Expr, kind) -> pl.Expr:
    """The date of a column of any type; null where it holds none."""
    if isinstance(kind, pl.Datetime):
        return _local(column, kind).dt.date()
    if kind == pl.Date:
        return column
    return _once(_text(column, kind), _date_of, pl.Date)


def _date_of(text: pl.Expr) -> pl.Expr:
    parts = [text.str.extract(r"^\s*" + _DATE, place).cast(pl.Int32) for place in (1, 2, 3)]
    joined = pl.format("{}-{}-{}", parts[0], parts[1].cast(pl.String).str.zfill(2), parts[2].cast(pl.String).str.zfill(2))
    return joined.str.to_date("%Y-%m-%d", strict=False)


def _of_moment(column: pl.Expr, kind) -> pl.Expr:
    if isinstance(kind, pl.Datetime):
        return (_local(column, kind).dt.timestamp("ms") % 86_400_000).cast(pl.Int32)
    return _once(_text(column, kind), lambda text: _milliseconds(text, r"^\s*\d{4}[-/.]?\d{1,2}[-/.]?\d{1,2}[ T]*" + _CLOCK), pl.Int32)


def _of_clock(column: pl.Expr, kind) -> pl.Expr:
    """Milliseconds of a time of day; whole numbers are HHMM, HHMMSS or HHMMSSmmm by their size."""
    if kind == pl.Time:
        return (column.cast(pl.Int64) // 1_000_000).cast(pl.Int32)
    if isinstance(kind, pl.Datetime):
        return _of_moment(column, kind)
    return _once(_text(column, kind).str.strip_chars(), _clock_of, pl.Int32)


def _clock_of(text: pl.Expr) -> pl.Expr:
    digits = pl.when(text.str.contains(r"^\d+$")).then(text.str.len_chars())
    padded = pl.when(digits <= 4).then(text.str.zfill(4)).when(digits <= 6).then(text.str.zfill(6)).when(digits <= 9)
    return _milliseconds(padded.then(text.str.zfill(9)).otherwise(text), r"^" + _CLOCK)


def _milliseconds(text: pl.Expr, pattern: str) -> pl.Expr:
    hours, minutes, seconds = (text.str.extract(pattern, place).cast(pl.Int32) for place in (1, 2, 3))
    parts = text.str.extract(pattern, 4).str.pad_end(3, "0").str.head(3).cast(pl.Int32)
    return ((hours * 60 + minutes) * 60 + seconds.fill_null(0)) * 1000 + parts.fill_null(0)


def _once(column: pl.Expr, make, kind) -> pl.Expr:
    """`make` of a text, computed once for each different one: a day has a few hundred stamps."""
    def of(values: pl.Series) -> pl.Series:
        words = values.unique()
        return values.replace_strict(words, words.to_frame("word").select(make(pl.col("word"))).to_series(), return_dtype=kind)

    return column.map_batches(of, return_dtype=kind, is_elementwise=True)


def _text(column: pl.Expr, kind=None) -> pl.Expr:
    return (column.cast(pl.Int64) if kind in (pl.Float32, pl.Float64) else column).cast(pl.String)


def with_instrument(frame: pl.DataFrame) -> pl.DataFrame:
    """Codes as SH600000 in a column ``instrument`` in place of code and exchange; null for what is no code.

    Raises:
        ConfigError: bare numbers without an exchange.
    """
    pairs = frame.select("code", "exchange").unique()
    made = [_standard(code, exchange) for code, exchange in pairs.iter_rows()]
    bare = [code for (code, exchange), one in zip(pairs.iter_rows(), made, strict=True) if one is None and exchange is None
            and code is not None and _BARE.fullmatch(code)]
    if bare:
        raise ConfigError(f"codes such as {bare[0]} do not say their exchange: map a column exchange, or give constants: {{exchange: SH}}")
    table = pairs.with_columns(instrument=pl.Series(made, dtype=pl.String))
    return frame.join(table, on=["code", "exchange"], how="left", nulls_equal=True, maintain_order="left")


def _standard(code: Optional[str], exchange: Optional[str] = None) -> Optional[str]:
    if code is None:
        return None
    if (found := standard_code(code.strip().upper())) is not None:
        return found
    place, bare = _EXCHANGES.get((exchange or "").strip().upper()), _BARE.fullmatch(code)
    return place + bare[1].zfill(6) if place and bare else None


def word_table(kind: str, column: str, found: Sequence[Optional[str]], vendor: Vendor) -> dict[str, str]:
    """What each of the vendor's words means.

    Raises:
        ConfigError: a word nobody explained.
    """
    given, usual = vendor.words.get(column, {}), _USUAL_SIDES if column == "side" else _USUAL_KINDS[kind]
    if column == "side" and "-1" in found and set(found) <= {"1", "-1", "0", None}:
        usual = {"1": "buy", "-1": "sell", "0": "none"}
    known = {word: given.get(word) or usual.get(word.strip().upper()) for word in found if word is not None}
    strange = sorted(word for word, ours in known.items() if ours is None)
    if strange:
        ours = list(SIDES) if column == "side" else list(KINDS[kind])
        raise ConfigError(f"{kind}: the source's column {column} holds {strange[:10]}, whose meaning is not known: say in the column "
                          f"mapping what they are ({kind}: {column}: {{{strange[0]}: {ours[0]}}}; ours are {ours})")
    return known
