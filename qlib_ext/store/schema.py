"""The tables and the fields of a store: units, from when a value counts, who needs it, what stands in for it."""

from dataclasses import asdict, dataclass
from typing import Dict, Iterable, List, Tuple

CODE_PATTERN = r"(?:SH|SZ|BJ)[0-9]{6}"
VWAP_MODES = ("typical", "amount")
INDEX_NAMES = ("csi300", "csi500", "csi1000")
INDEX_SIZES = {"csi300": 300, "csi500": 500, "csi1000": 1000}
INDEX_CODES = {"csi300": "SH000300", "csi500": "SH000905", "csi1000": "SH000852"}
KINDS = ("stock", "index", "etf", "bond")
ETF_CLASSES = ("sector", "broad")
BASKET_DAYS = 100  # calendar days after which a basket of an ETF says no more what it holds
PRICES = ("open", "high", "low", "close")

# Prices are stored with 24 bits; an open or close may stick out of [low, high] by rounding only.
PRICE_TOLERANCE = 1e-3
# Amounts of public tables are often cut to a 16-bit mantissa: relative error of amount / volume up to 2^-16, doubled for safety.
AMOUNT_TOLERANCE = 2.0**-15


@dataclass(frozen=True)
class TableSpec:
    """Columns of one input table besides `instrument`: `dates`, `numbers`, `texts` are required, the optional ones may be absent.

    `days`: one row per instrument and day, laid into fields; other tables are spans or events. `kept`: nothing of it becomes a
    field; it is checked and kept in the store as it is, to be read with `qlib_ext.store.read_table`.
    """

    description: str
    dates: Tuple[str, ...]
    numbers: Tuple[str, ...] = ()
    texts: Tuple[str, ...] = ()
    optional_dates: Tuple[str, ...] = ()
    optional_numbers: Tuple[str, ...] = ()
    optional_texts: Tuple[str, ...] = ()
    required: bool = False
    days: bool = False
    kept: bool = False

    @property
    def required_columns(self) -> Tuple[str, ...]:
        return ("instrument",) + self.dates + self.texts + self.numbers

    @property
    def columns(self) -> Tuple[str, ...]:
        return self.required_columns + self.optional_dates + self.optional_numbers + self.optional_texts


BALANCES = ("equity", "total_assets", "total_debt", "long_term_debt", "preferred_equity")
FLOWS = ("net_profit", "sales", "operating_cash_flow")
FISCAL_YEARS = 5

TABLES: Dict[str, TableSpec] = {
    "bars": TableSpec(
        "one row per stock (or ETF, bond) and day: unadjusted prices in CNY, volume in shares (bonds: pieces), amount in CNY, "
        "turnover in percent of the float, factor (adjusted price = price x factor), is_st 1/0/-1 unknown, limit prices; a "
        "suspended day has volume 0 or no row",
        ("date",), PRICES + ("volume", "factor"), optional_numbers=("amount", "turnover", "is_st", "limit_up", "limit_down"),
        required=True, days=True),
    "index_bars": TableSpec("one row per index and day: points, volume in shares, amount in CNY", ("date",), PRICES + ("volume",),
                            optional_numbers=("amount",), required=True, days=True),
    "membership": TableSpec("one row per span of membership in an index, both days inclusive", ("start", "end"), texts=("index",),
                            required=True),
    "index_weights": TableSpec("official weights of all members of an index, known after the close of the date; every date sums "
                               "to 1 or every date to 100", ("date",), ("weight",), texts=("index",)),
    "industry": TableSpec("one row per span of a level-1 industry, both days inclusive", ("start", "end"), texts=("l1_code",),
                          optional_texts=("l1_name",)),
    "float_shares_monthly": TableSpec(
        "float shares (and total shares) at the close of `month`, counting from the first trading day after it; rows of method "
        "snapshot_bfill look ahead and are left out", ("month",), ("float_shares",), optional_numbers=("total_shares",),
        optional_texts=("method",)),
    "fundamentals": TableSpec(
        "one row per report as published: period_end (a quarter's last day), announcement; CNY; flows (net_profit, sales, "
        "operating_cash_flow) are year to date, balances are those of period_end, eps is CNY per share year to date; a restated "
        "report is another row with a later announcement",
        ("period_end", "announcement"), optional_numbers=BALANCES + FLOWS + ("eps",)),
    "dividends": TableSpec("one row per ex-date: cash in CNY per share before tax, bonus in new shares per share",
                           ("ex_date",), ("cash", "bonus")),
    "instruments": TableSpec("kind of each instrument (stock, etf, bond), its first day of listing, its last one if delisted; of an "
                             "ETF the index it tracks (any text, the same for all that track it) and its class, sector or broad",
                             ("list_date",), texts=("kind",), optional_dates=("delist_date",),
                             optional_texts=("name", "tracked_index", "etf_class")),
    "etf_baskets": TableSpec("one row per ETF (instrument), date and member: weight as a fraction, known after the close of the "
                             "date", ("date",), ("weight",), texts=("member",), kept=True),
    "bond_terms": TableSpec(
        "one row per convertible bond and change of its terms, counting from `date` on: underlying stock, conversion price in "
        "CNY, size outstanding in CNY, rating, last day", ("date",), ("conversion_price",), texts=("stock",),
        optional_dates=("maturity",),
        optional_numbers=("size",), optional_texts=("rating",), kept=True),
    "fund_holdings": TableSpec(
        "one row per fund, stock (instrument) and report: weight as a fraction of the fund's net value, known after the close of "
        "`announcement`", ("period_end", "announcement"), ("weight",), texts=("fund",), kept=True),
}


@dataclass(frozen=True)
class Field:
    """One stored field: unit, adjusted by `factor` or not, meaning, from when a value counts, who needs it, what stands in."""

    unit: str
    adjusted: bool
    description: str
    point_in_time: str = "the day's close"
    needed_by: str = ""
    stand_in: str = "none"


_PRICE = "CNY x factor (index: points)"
_SHARES_RULE = "the first trading day after the value's date"
_REPORT_RULE = "the first trading day after the announcement"


def _price(description: str) -> Field:
    return Field(_PRICE, True, description + "; NaN on suspended days", needed_by="all")


def _report(unit: str, description: str, needed_by: str) -> Field:
    description += "; NaN before the first known report and where the report lacks it"
    return Field(unit, False, description, _REPORT_RULE, needed_by, "none: the styles that need it are left out")


FIELDS: Dict[str, Field] = {
    "open": _price("opening price x factor"),
    "high": _price("highest price x factor"),
    "low": _price("lowest price x factor"),
    "close": _price("closing price x factor"),
    "volume": Field("shares / factor", True, "shares traded / factor; NaN on suspended days", needed_by="all"),
    "amount": Field("CNY", False, "value traded; NaN on suspended days and where unknown",
                    needed_by="market state, intraday checks", stand_in="volume (market state)"),
    "turnover": Field("percent", False, "volume in percent of the float, as in the table; NaN when suspended or unknown",
                      needed_by="liquidity style", stand_in="100 x volume x factor / float_shares"),
    "factor": Field("1", False, "adjustment factor: adjusted price = price x factor; carried through suspensions",
                    needed_by="all"),
    "change": Field("fraction", True, "adjusted close / last traded adjusted close - 1; NaN on the first day and when suspended",
                    needed_by="Qlib's exchange"),
    "limit_up": Field("CNY x factor", True, "highest price allowed on the day x factor: the table's column where it has one, "
                      "else by market_rules (ETFs: 10 %, those of STAR shares 20 %, those of ChiNext shares need the column); "
                      "NaN on days without a limit, on the first day and where no earlier close is known",
                      "the last close and the day's factor", "exchange, optimiser", "by market_rules; unknown ST counts as none"),
    "limit_down": Field("CNY x factor", True, "lowest price allowed on the day x factor, as limit_up",
                        "the last close and the day's factor", "exchange, optimiser",
                        "by market_rules; unknown ST counts as none"),
    "is_st": Field("flag", False, "1 special treatment, 0 none, NaN unknown; carried through days without a row",
                   needed_by="universes, price limits", stand_in="none: unknown is not 0"),
    "industry": Field("code", False, "level-1 industry in force (see industry_codes); NaN unknown", "the span's first day",
                      "risk model, portfolios"),
    "float_shares": Field("shares", False, "floating shares: the last value published x (1 + bonus) on each ex-date since its "
                          "date (as published without table dividends); backfilled snapshots are left out; NaN before the first value",
                          _SHARES_RULE, "index weights, liquidity"),
    "float_cap": Field("CNY", False, "last float_shares published x unadjusted close of the last day traded x growth of a share "
                       "from the value's date to that day: 1 + bonus of the ex-dates (without table dividends the ratio of "
                       "factors, which also carries cash); NaN where unknown", _SHARES_RULE,
                       "index weights, size", "none"),
    "total_shares": Field("shares", False, "total shares, grown on ex-dates as float_shares; NaN before the first value",
                          _SHARES_RULE, "total_cap", "float_shares"),
    "total_cap": Field("CNY", False, "as float_cap, with total_shares; NaN where unknown", _SHARES_RULE,
                       "size, value and leverage styles", "float_cap"),
    "cash_dividend": Field("CNY per share", False, "cash before tax on its ex-date, 0 on the stock's other days",
                           "the ex-date", "price versions of indices"),
    "bonus_shares": Field("shares per share", False, "new shares on their ex-date, 0 on the stock's other days",
                          "the ex-date", "price versions of indices"),
    "report_age": _report("calendar days", "days since the period end of the latest report known", "doctor: stale fundamentals"),
    "equity": _report("CNY", "common and preferred equity of the latest report", "book-to-price, ROE, leverage"),
    "total_assets": _report("CNY", "total assets of the latest report", "leverage"),
    "total_debt": _report("CNY", "total debt of the latest report", "leverage"),
    "long_term_debt": _report("CNY", "long-term debt of the latest report", "leverage"),
    "preferred_equity": _report("CNY", "preferred equity of the latest report", "leverage"),
    "net_profit_ttm": _report("CNY", "net profit of the last four quarters known", "earnings yield, ROE"),
    "sales_ttm": _report("CNY", "sales of the last four quarters known", "growth"),
    "operating_cash_flow_ttm": _report("CNY", "operating cash flow of the last four quarters known", "earnings yield"),
}
for _year in range(FISCAL_YEARS):
    _which = "the latest fiscal year known" if _year == 0 else f"{_year} years before the latest fiscal year known"
    FIELDS[f"eps_y{_year}"] = _report("CNY per share", f"earnings per share of {_which}", "growth")
    FIELDS[f"sales_y{_year}"] = _report("CNY", f"sales of {_which}", "growth")

_VWAP = {
    "typical": "(high + low + close) / 3 x factor; NaN on suspended days",
    "amount": "amount / volume x factor; NaN on suspended days and where the amount is unknown (indices: typical price)",
}


def vwap_field(mode: str) -> Field:
    """Description of `vwap` in one of the two definitions."""
    return Field(_PRICE, True, _VWAP[mode], needed_by="Alpha158, labels by vwap", stand_in="the typical price (--vwap typical)")


def weight_field(index_name: str) -> Field:
    """Description of the weight field of one index."""
    return Field("fraction", False, f"weight in {index_name} after the close, shares of 1 among the members that have had a bar "
                 "(one whose bars have ended keeps its part, which is stored no more: such days sum to less); NaN for "
                 "non-members",
                 "the first trading day after an official date, drifting with prices", "benchmarks, portfolios",
                 "float cap, else equal weights; the metadata say from when to when")  # fmt: skip


INTRADAY = {
    "hf_<factor>_1d": "high-frequency factor made of the day's intraday bars, trades or orders (the factors: qlib_ext.factors.intraday)",
    "hf_<factor>": "the same, mean over the last days (5) of which 60 % must be known",
    "hf_<factor>_orth": "that mean, winsorised, orthogonalised day by day on industry, ln cap, 20-day reversal, turnover, volatility "
                        "and ln BP, as far as the store has them, as a z-score",
    "hi_<feature>": "daily input of intraday networks, made of the day's bars (and trades)",
}
"""Kinds of fields that `build-intraday` adds."""


def intraday_field(name: str) -> Field:
    """Description of one field of `build-intraday`."""
    ends = [end for end in ("_1d", "_orth") if name.endswith(end)]
    kind = "hi_<feature>" if name.startswith("hi_") else f"hf_<factor>{ends[0] if ends else ''}"
    return Field("1", False, INTRADAY[kind] + "; NaN where unknown", needed_by="intraday models, factor reports")


def field(name: str, vwap: str = "typical") -> Field:
    """Description of a stored field by name."""
    if name == "vwap":
        return vwap_field(vwap)
    if name.startswith(("hf_", "hi_")):
        return intraday_field(name)
    return weight_field(name[: -len("_weight")]) if name.endswith("_weight") else FIELDS[name]


def describe_fields(names: Iterable[str], vwap: str) -> Dict[str, dict]:
    """Describe stored fields for the metadata: name -> {unit, adjusted, description, point_in_time, needed_by, stand_in}."""
    return {name: asdict(field(name, vwap)) for name in names}


def schema_page() -> str:
    """Tables and fields as Markdown: the page of the README, printed by `python -m qlib_ext.store schema`."""
    lines: List[str] = ["| table | columns (optional ones in brackets) | what |", "|---|---|---|"]
    for name, spec in TABLES.items():
        optional = [f"[{column}]" for column in spec.columns[len(spec.required_columns):]]
        title = f"`{name}`" + (" (required)" if spec.required else " (kept as it is)" if spec.kept else "")
        lines.append(f"| {title} | {', '.join(list(spec.required_columns) + optional)} | {spec.description} |")
    lines += ["", "| field | unit | adjusted | what | counts from | needed by | stands in when absent |",
              "|---|---|---|---|---|---|---|"]
    for name in list(FIELDS) + ["vwap", "<index>_weight", *INTRADAY]:
        one = field(name)
        cells = (one.unit, "yes" if one.adjusted else "no", one.description, one.point_in_time, one.needed_by, one.stand_in)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
