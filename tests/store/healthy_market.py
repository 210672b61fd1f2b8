"""Tables of a market in which nothing is wrong: three boards, limits kept, reports in time, lists changed on official days."""

import numpy as np
import pandas as pd

DAYS = pd.bdate_range("2018-06-01", "2020-12-31")
CODES = np.array([f"SH60{k:04d}" for k in range(130)] + [f"SZ30{k:04d}" for k in range(60)]
                 + [f"SH688{k:03d}" for k in range(50)])
SIZES = {"csi300": 30, "csi500": 50, "csi1000": 80}
INDICES = {"csi300": "SH000300", "csi500": "SH000905", "csi1000": "SH000852"}
ENDS = {"SH600125": 300, "SH600126": 350, "SZ300055": 420, "SH688045": 500}  # delisted after so many days
STARTS = {"SH600127": 80, "SZ300056": 150, "SH688046": 200}
CHANGES = pd.to_datetime(["2018-06-11", "2018-12-17", "2019-06-17", "2019-12-16", "2020-06-15", "2020-12-14"])  # by CSI's rule
SPLIT = "SH600003"
FIRST_QUARTER = "2016-03-31"


def make_bars(generator) -> pd.DataFrame:
    frames = []
    for place, code in enumerate(CODES):
        move = generator.normal(0, 0.012, len(DAYS)).clip(-0.03, 0.03)
        raw = 20 * np.exp(np.cumsum(move))
        factor = np.where(np.arange(len(DAYS)) < 200, 1.0, 2.0) if code == SPLIT else np.ones(len(DAYS))
        close = (raw / factor).round(2)
        open_ = (close * np.exp(generator.normal(0, 0.002, len(DAYS)))).round(2)
        frame = pd.DataFrame({"date": DAYS, "instrument": code, "open": open_, "close": close})
        frame["high"] = (frame[["open", "close"]].max(axis=1) * 1.004).round(2)
        frame["low"] = (frame[["open", "close"]].min(axis=1) * 0.996).round(2)
        frame["volume"] = generator.integers(100_000, 900_000, len(DAYS)) * factor
        frame["amount"] = frame["volume"] * (frame["high"] + frame["low"] + frame["close"]) / 3
        frame["turnover"] = 100 * frame["volume"] / (1e7 * factor)
        frame["factor"], frame["is_st"] = factor, int(place % 40 == 5)
        frame = frame.iloc[STARTS.get(code, 0):ENDS.get(code, len(DAYS))]
        frames.append(frame.drop(frame.index[60 + place:63 + place]))  # three days suspended
    return pd.concat(frames, ignore_index=True)


def make_membership() -> pd.DataFrame:
    """Each index has its own band of codes; at every change two new codes replace the two oldest ones."""
    rows, edges = [], [0, *DAYS.get_indexer(CHANGES), len(DAYS)]
    free = [code for code in CODES if code not in ENDS and code not in STARTS]
    for name, size in SIZES.items():
        band, free = free[:size + 12], free[size + 12:]
        for shift, (first, stop) in enumerate(zip(edges, edges[1:])):
            rows += [(code, name, DAYS[first], DAYS[stop - 1]) for code in band[2 * shift:2 * shift + size]]
    return pd.DataFrame(rows, columns=["instrument", "index", "start", "end"])


def make_weights(membership: pd.DataFrame) -> pd.DataFrame:
    """Official weights, equal: of the day before the first one, then monthly, and before every change those of the new list."""
    before = [DAYS[0] - pd.Timedelta(1, "D"), *DAYS[20::20][:-1], *(DAYS[DAYS.get_indexer(CHANGES) - 1])]
    rows = []
    for date in sorted(set(before)):
        following = DAYS[DAYS > date][0]
        for name, members in membership[(membership["start"] <= following) & (membership["end"] >= following)].groupby("index"):
            rows += [(code, name, date, 1 / len(members)) for code in members["instrument"]]
    return pd.DataFrame(rows, columns=["instrument", "index", "date", "weight"])


def make_reports() -> pd.DataFrame:
    quarters = pd.date_range(FIRST_QUARTER, "2020-09-30", freq="QE")
    frame = pd.MultiIndex.from_product([CODES, quarters], names=["instrument", "period_end"]).to_frame(index=False)
    frame["announcement"] = frame["period_end"] + pd.to_timedelta(30 + 60 * (frame["period_end"].dt.month == 12), unit="D")
    for name in ("equity", "total_assets", "total_debt", "long_term_debt", "preferred_equity", "net_profit", "sales",
                 "operating_cash_flow", "eps"):
        frame[name] = 1e6 * frame["period_end"].dt.quarter
    return frame


def make_tables() -> dict:
    generator = np.random.default_rng(5)
    index_bars = []
    for code in INDICES.values():
        close = 3000 * np.exp(np.cumsum(generator.normal(0, 0.01, len(DAYS))))
        index_bars.append(pd.DataFrame({"date": DAYS, "instrument": code, "open": close, "high": close * 1.001,
                                        "low": close * 0.999, "close": close, "volume": 1e9, "amount": 1e10}))
    shares = pd.DataFrame({"month": pd.Timestamp("2018-05-31"), "instrument": CODES, "float_shares": 1e7, "total_shares": 2e7,
                           "method": "turnover"})
    split = pd.DataFrame({"month": [DAYS[199]], "instrument": [SPLIT], "float_shares": [2e7], "total_shares": [4e7],
                          "method": ["turnover"]})
    membership = make_membership()
    return {
        "bars": make_bars(generator), "index_bars": pd.concat(index_bars, ignore_index=True), "membership": membership,
        "index_weights": make_weights(membership),
        "industry": pd.DataFrame({"instrument": CODES, "start": pd.Timestamp("2010-01-01"), "end": pd.Timestamp("2099-12-31"),
                                  "l1_code": [str(10 + k % 31) for k in range(len(CODES))]}),
        "float_shares_monthly": pd.concat([shares, split], ignore_index=True), "fundamentals": make_reports(),
        "dividends": pd.DataFrame({"instrument": [SPLIT], "ex_date": [DAYS[200]], "cash": [0.0], "bonus": [1.0]}),
        "instruments": pd.DataFrame({
            "instrument": CODES, "kind": "stock", "list_date": [DAYS[STARTS[c]] if c in STARTS else pd.Timestamp("2010-01-04")
                                                                for c in CODES],
            "delist_date": [DAYS[ENDS[c]] if c in ENDS else pd.NaT for c in CODES]}),
    }


def day(text: str) -> int:
    return int(DAYS.searchsorted(pd.Timestamp(text)))


def edit(store, code: str, fields, change) -> None:
    """Change the values of a code's files; `change` gets them over the whole calendar, NaN where the file has none."""
    for field in [fields] if isinstance(fields, str) else fields:
        file = store / "features" / code.lower() / f"{field}.day.bin"
        raw = np.fromfile(file, dtype="<f4")
        values = np.full(len(DAYS), np.nan, dtype="f4")
        values[int(raw[0]):int(raw[0]) + len(raw) - 1] = raw[1:]
        changed = change(values.copy())
        np.r_[raw[0], changed[int(raw[0]):int(raw[0]) + len(raw) - 1]].astype("<f4").tofile(file)


def put(at, value):
    """A change that sets (or with a function changes) what lies at `at`."""
    def change(values):
        values[at] = value(values[at]) if callable(value) else value
        return values
    return change
