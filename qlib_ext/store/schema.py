"""What the tables hold, what a store of ours holds, and in which units."""

from dataclasses import asdict, dataclass
from typing import Dict, Tuple

CODE_PATTERN = r"(?:SH|SZ|BJ)[0-9]{6}"
VWAP_MODES = ("typical", "amount")
INDEX_NAMES = ("csi300", "csi500", "csi1000")
PRICES = ("open", "high", "low", "close")

# Prices are stored with 24 bits; an open or close may stick out of [low, high] by rounding only.
PRICE_TOLERANCE = 1e-3
# Amounts of public tables are often cut to a 16-bit mantissa: relative error of amount / volume up to 2^-16, doubled for safety.
AMOUNT_TOLERANCE = 2.0**-15


@dataclass(frozen=True)
class TableSpec:
    """Columns of one input table: `dates` and `texts` are required, `numbers` too, the optional ones may be absent."""

    dates: Tuple[str, ...]
    numbers: Tuple[str, ...] = ()
    texts: Tuple[str, ...] = ()
    optional_numbers: Tuple[str, ...] = ()
    optional_texts: Tuple[str, ...] = ()
    required: bool = True

    @property
    def required_columns(self) -> Tuple[str, ...]:
        return ("instrument",) + self.dates + self.texts + self.numbers

    @property
    def columns(self) -> Tuple[str, ...]:
        return self.required_columns + self.optional_numbers + self.optional_texts


TABLES: Dict[str, TableSpec] = {
    "bars": TableSpec(("date",), PRICES + ("volume", "factor"), optional_numbers=("amount", "turnover", "is_st")),
    "index_bars": TableSpec(("date",), PRICES + ("volume",), optional_numbers=("amount",)),
    "membership": TableSpec(("start", "end"), texts=("index",)),
    "index_weights": TableSpec(("date",), ("weight",), texts=("index",), required=False),
    "industry": TableSpec(("start", "end"), texts=("l1_code",), optional_texts=("l1_name",), required=False),
    "float_shares_monthly": TableSpec(("month",), ("float_shares",), optional_texts=("method",), required=False),
}


@dataclass(frozen=True)
class Field:
    """One stored field: its unit, whether it is adjusted by `factor`, and what it means."""

    unit: str
    adjusted: bool
    description: str


_PRICE = "CNY x factor (index: points)"
FIELDS: Dict[str, Field] = {
    "open": Field(_PRICE, True, "opening price x factor; NaN on suspended days"),
    "high": Field(_PRICE, True, "highest price x factor; NaN on suspended days"),
    "low": Field(_PRICE, True, "lowest price x factor; NaN on suspended days"),
    "close": Field(_PRICE, True, "closing price x factor; NaN on suspended days"),
    "volume": Field("shares / factor", True, "shares traded / factor; NaN on suspended days"),
    "amount": Field("CNY", False, "value traded; NaN on suspended days and where unknown"),
    "turnover": Field("percent", False, "volume in percent of the float, as in the table; NaN when suspended or unknown"),
    "factor": Field("1", False, "adjustment factor: adjusted price = price x factor; carried through suspensions"),
    "change": Field("fraction", True, "adjusted close / last traded adjusted close - 1; NaN on the first day and when suspended"),
    "is_st": Field("flag", False, "1 special treatment, 0 none, NaN unknown; carried through days without a row"),
    "industry": Field("code", False, "level-1 industry in force (see industry_codes), from its start date on; NaN unknown"),
    "float_shares": Field(
        "shares",
        False,
        "floating shares; a month's value counts from the first trading day after its date; backfilled snapshots are left out; "
        "NaN before the first value",
    ),
    "float_cap": Field("CNY", False, "unadjusted close of the last day traded x float_shares; NaN where unknown"),
}
_VWAP = {
    "typical": "(high + low + close) / 3 x factor; NaN on suspended days",
    "amount": "amount / volume x factor; NaN on suspended days and where the amount is unknown (indices: typical price)",
}


def vwap_field(mode: str) -> Field:
    """Description of `vwap` in one of the two definitions."""
    return Field(_PRICE, True, _VWAP[mode])


def weight_field(index_name: str) -> Field:
    """Description of the weight field of one index."""
    return Field("fraction", False, f"weight in {index_name} after the close; members with bars sum to 1; NaN for non-members")


def describe_fields(names, vwap: str) -> Dict[str, dict]:
    """Describe stored fields for the metadata: name -> {unit, adjusted, description}."""
    described = {}
    for name in names:
        if name == "vwap":
            field = vwap_field(vwap)
        elif name.endswith("_weight"):
            field = weight_field(name[: -len("_weight")])
        else:
            field = FIELDS[name]
        described[name] = asdict(field)
    return described
