"""Sets of constraints as the brokers state them (sources and certainty: the reports; the AI sets are from summaries of 2025-09)."""

from __future__ import annotations

import difflib
from typing import Any

from qlib_ext.errors import ConfigError

CNE5 = ("size", "beta", "momentum", "residual_volatility", "nonlinear_size", "book_to_price", "liquidity", "earnings_yield", "growth",
        "leverage")
"""The ten styles that "all styles" means."""

PRESETS: dict[str, dict[str, Any]] = {
    "dl_em": {"cap": 0.03, "industry": 0.02, "style": dict.fromkeys(CNE5, 0.5), "tracking_error": 0.05},
    "meta": {"benchmark_multiple": 5.0, "industry": 0.02, "style": {"size": 0.5}},
    "ai_wide": {"cap": 0.01, "industry": 0.01, "style": {"size": 0.3}, "turnover": 0.3},
    "ai_strict": {"cap": 0.01, "industry": 0.01, "member_share": 0.8, "turnover": 0.3,
                  "style": {"size": 0.1, "size_squared": 0.1, "roe": 0.3, "sue": 0.3, "volatility_60": 0.3}},
}  # fmt: skip
"""`dl_em`: DL_EM_Dynamic on CSI1000. `meta`: Meta_RiskControl and Meta_Master on CSI300, CSI500 and CSI1000; 5 x a benchmark weight of 0
is 0, so nothing outside the index. `ai_wide`, `ai_strict`: AI-enhanced on CSI500 and CSI1000; turnover is read as one way a rebalance, the
report's price-to-book bound is not known and left out."""


def preset_constraints(preset: str | None, constraints: dict[str, Any] | None) -> dict[str, Any]:
    """A preset's constraints, with single ones replaced (null leaves one out).

    Raises:
        ConfigError: an unknown preset.
    """
    if preset is not None and preset not in PRESETS:
        near = difflib.get_close_matches(str(preset), PRESETS, 1)
        raise ConfigError(f"preset {preset!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; choose from {sorted(PRESETS)}")
    return {**(PRESETS[preset] if preset else {}), **(constraints or {})}
