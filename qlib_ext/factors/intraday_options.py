"""The ten high-frequency factors: their names, what they need, their signs, and the options of how they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from qlib_ext.errors import ConfigError
from qlib_ext.factors.session import LAST_CONTINUOUS, SESSION

VERSION = 2
"""Raised whenever a formula changes, so that stored values are computed again."""
FACTORS = ("hf_skew", "hf_down_share", "hf_buy_intention_share", "hf_buy_intention_intensity", "hf_large_buy_share",
           "hf_large_buy_intensity", "hf_improved_reversal", "hf_tail_share", "hf_outflow_share", "hf_push_up")
NEEDS = {
    "hf_skew": ("bars",), "hf_down_share": ("bars",), "hf_buy_intention_share": ("bars", "trades", "orders"),
    "hf_buy_intention_intensity": ("bars", "trades", "orders"), "hf_large_buy_share": ("bars", "trades"),
    "hf_large_buy_intensity": ("bars", "trades"), "hf_improved_reversal": ("bars",), "hf_tail_share": ("bars",),
    "hf_outflow_share": ("bars", "n_trades"), "hf_push_up": ("bars", "n_trades"),
}  # fmt: skip
"""What each factor reads. The large-order factors also need order numbers in the trades: where they lack the value is null."""
PROXIES = {
    "hf_outflow_share_proxy": ("bars",), "hf_push_up_proxy": ("bars",), "hf_buy_intention_share_proxy": ("bars", "trades"),
    "hf_buy_intention_intensity_proxy": ("bars", "trades"), "hf_large_buy_share_proxy": ("bars", "trades"),
    "hf_large_buy_intensity_proxy": ("bars", "trades"),
}  # fmt: skip
"""Other factors that stand in where an input lacks, never under the factor's own name: without numbers of trades, the share of amount in
falling bars and the push-up of the largest bars by amount; without orders, active buying alone; without order numbers, large trades."""
SIGNS = {"hf_skew": -1, "hf_down_share": 1, "hf_buy_intention_share": 1, "hf_buy_intention_intensity": 1, "hf_large_buy_share": 1,
         "hf_large_buy_intensity": 1, "hf_improved_reversal": -1, "hf_tail_share": -1, "hf_outflow_share": 1, "hf_push_up": -1}
"""1 where a high value is expected to foretell a high return, -1 where a low one is; that of the downside share is inferred."""
LARGE_ORDER_FACTORS = ("hf_large_buy_share", "hf_large_buy_intensity", "hf_large_buy_share_proxy", "hf_large_buy_intensity_proxy")
TRADE_FACTORS = tuple(name for name, needs in {**NEEDS, **PROXIES}.items() if "trades" in needs)
BAR_FACTORS = tuple(name for name in (*FACTORS, *PROXIES) if name not in TRADE_FACTORS)


@dataclass(frozen=True)
class IntradayOptions:
    """How the factors are read; the defaults are the documented ones.

    Args:
        bar_minutes: minutes of the bars (1, 5, 15, 30, 60).
        returns: ``close`` to close, the first bar from its own open; or ``bar``, each from its own open.
        demean: whether the skewness takes the day's mean return off.
        downside: ``squares``, the share of negative returns in the sum of squares; or ``deviation``, the standard deviation of negative
            returns over that of all, which some summaries print and which is another quantity.
        open_minutes: of the period after the open, without the opening auction.
        tail_minutes: of the last period.
        closing_auction: ``inside`` the tail and the day, or ``outside`` of both: without 14:57 to 15:00 (one-minute bars only).
        push_share: share of the traded bars that count as large in the push-up.
        min_traded: share of the day's bars that must have traded.
        buy_intention_sign: 1 adds new orders to active trades, as the report's words and a public implementation do; -1 subtracts them,
            as a copied handbook prints.
        cancels: whether orders cancelled in table orders are taken off the new ones. Shenzhen publishes cancellations among its trades,
            where they are left out, so that with both exchanges in one cross-section only false treats them alike.
        large_deviations: standard deviations above the mean from which an order is large.
        large_scale: ``log`` of the amounts, or ``plain``.
        threshold_days: past days whose orders make the threshold, the day itself is none of them.
        min_threshold_days: of them that must be known.
        order_size: ``day``, what an order bought or sold on the whole day; or ``observed``, up to the end of the period after the open.
        proxy: whether `PROXIES` may stand in.

    Raises:
        ConfigError: a value that is out of range or does not fit the bars.
    """

    bar_minutes: int = 1
    returns: str = "close"
    demean: bool = True
    downside: str = "squares"
    open_minutes: int = 30
    tail_minutes: int = 30
    closing_auction: str = "inside"
    push_share: float = 0.3
    min_traded: float = 0.25
    buy_intention_sign: int = 1
    cancels: bool = False
    large_deviations: float = 1.0
    large_scale: str = "log"
    threshold_days: int = 20
    min_threshold_days: int = 5
    order_size: str = "day"
    proxy: bool = False

    def __post_init__(self):
        for name, allowed in {"bar_minutes": (1, 5, 15, 30, 60), "returns": ("close", "bar"), "downside": ("squares", "deviation"),
                              "closing_auction": ("inside", "outside"), "buy_intention_sign": (1, -1), "large_scale": ("log", "plain"),
                              "order_size": ("day", "observed")}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be one of {list(allowed)}")
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{one.name}={value!r} must be true or false")
            if one.type == "float" and (type(value) not in (int, float) or not math.isfinite(value)):
                raise ConfigError(f"{one.name}={value!r} must be a number")
        for name in ("open_minutes", "tail_minutes"):
            minutes = getattr(self, name)
            if type(minutes) is not int or not 0 < minutes < SESSION or minutes % self.bar_minutes:
                raise ConfigError(f"{name}={minutes!r} must be minutes of whole bars of {self.bar_minutes}, below {SESSION}: set the "
                                  "options open_minutes and tail_minutes")
        if self.open_minutes + self.tail_minutes > SESSION:
            raise ConfigError(f"open_minutes={self.open_minutes} and tail_minutes={self.tail_minutes} overlap: a day has {SESSION}")
        if not (0 < self.push_share <= 1 and 0 <= self.min_traded <= 1):
            raise ConfigError(f"push_share={self.push_share} and min_traded={self.min_traded} must be shares of the bars")
        if not (type(self.threshold_days) is int and type(self.min_threshold_days) is int
                and 1 <= self.min_threshold_days <= self.threshold_days):
            raise ConfigError(f"threshold_days={self.threshold_days} must be a number of days, min_threshold_days="
                              f"{self.min_threshold_days} one from 1 up to it")
        if self.closing_auction == "outside" and self.bar_minutes > 1:
            raise ConfigError(f"closing_auction: outside needs one-minute bars: those of {self.bar_minutes} minutes hold it whole")
        if self.closing_auction == "outside" and SESSION - self.tail_minutes >= LAST_CONTINUOUS:
            raise ConfigError(f"closing_auction: outside leaves nothing of tail_minutes={self.tail_minutes}: take more than "
                              f"{SESSION - LAST_CONTINUOUS}")


def named(names, allowed: tuple[str, ...], options: IntradayOptions) -> list[str]:
    """The names asked for; None: all factors of `allowed`, without proxies.

    Raises:
        ConfigError: a name that is none of them, or a proxy where `options` allows none.
    """
    names = [name for name in allowed if name in FACTORS] if names is None else list(names)
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise ConfigError(f"{wrong} cannot be made here; choose from {list(allowed)}")
    if not options.proxy and set(names) & set(PROXIES):
        raise ConfigError(f"{sorted(set(names) & set(PROXIES))} stand in for factors whose input lacks: set proxy: true to use them")
    return names
