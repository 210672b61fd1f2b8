"""Minute bars and daily bars made of trades."""

from __future__ import annotations

import polars as pl

from qlib_ext.factors.session import SESSION, session_minute

KEY = ("date", "instrument")
_ORDER = (*KEY, "millisecond", "sequence")
_SUMS = (pl.col("price").first().alias("open"), pl.col("price").max().alias("high"), pl.col("price").min().alias("low"),
         pl.col("price").last().alias("close"), pl.col("quantity").sum().alias("volume"),
         (pl.col("price") * pl.col("quantity")).sum().alias("amount"), pl.len().cast(pl.Int32).alias("n_trades"))


def bars_from_trades(trades: pl.LazyFrame, fill: bool = True) -> pl.LazyFrame:
    """One-minute bars of trades, by (date, instrument, minute); the trades of the opening auction are minute 0.

    The closing auction (14:57 to 15:00) trades at 15:00 and lies in bar 240; what is stamped in the midday break lies in bar 120.

    Args:
        trades: columns date, instrument, millisecond, price in CNY, quantity in shares, sequence; no cancellations.
        fill: also the minutes 1 to 240 nobody traded in: volume, amount and n_trades 0, prices flat at the last trade's, null before the
            first one.

    Returns:
        Columns date, instrument, minute, open, high, low, close, volume, amount, n_trades.
    """
    key = (*KEY, "minute")
    made = trades.sort(_ORDER).with_columns(minute=session_minute(pl.col("millisecond"))).group_by(*key, maintain_order=True).agg(_SUMS)
    if not fill:
        return made
    minutes = pl.int_range(1, SESSION + 1, dtype=pl.Int16).implode()
    grid = trades.select(KEY).unique().with_columns(minute=minutes).explode("minute")
    known = pl.concat([grid, made.filter(pl.col("minute") == 0).select(key)]).join(made, on=key, how="left").sort(key)
    last = pl.col("close").forward_fill().over(KEY)
    return known.with_columns(close=last).with_columns(
        *(pl.col(name).fill_null(pl.col("close")) for name in ("open", "high", "low")),
        *(pl.col(name).fill_null(0) for name in ("volume", "amount", "n_trades")))


def daily_from_trades(trades: pl.LazyFrame) -> pl.LazyFrame:
    """Daily bars of trades, by (date, instrument): open is the first trade's price (the opening auction's, where there was one), close
    the last one's, which is the price of the closing auction.

    Args:
        trades: as in `bars_from_trades`. Trades after 15:00 at the fixed price of the close (STAR and ChiNext boards) are in the exchanges'
            daily volume; where the table leaves them out, volume and amount are smaller by them.

    Returns:
        Columns date, instrument, open, high, low, close, volume, amount, n_trades.
    """
    return trades.sort(_ORDER).group_by(*KEY, maintain_order=True).agg(_SUMS)


def daily_from_bars(bars: pl.LazyFrame) -> pl.LazyFrame:
    """Daily bars of minute bars, by (date, instrument); prices of the bars somebody traded in.

    Args:
        bars: columns date, instrument, minute, open, high, low, close, volume, amount.
    """
    traded = pl.col("volume") > 0
    return bars.sort(*KEY, "minute").group_by(*KEY, maintain_order=True).agg(
        pl.col("open").filter(traded).first(), pl.col("high").filter(traded).max(), pl.col("low").filter(traded).min(),
        pl.col("close").filter(traded).last(), pl.col("volume").sum(),
        pl.when(pl.col("amount").count() == pl.len()).then(pl.col("amount").sum()))
