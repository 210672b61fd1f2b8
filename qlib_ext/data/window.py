"""Transforms of one gathered day of windows, by name: what depends on where a window ends is made when it is cut, and never stored.

Each takes ``x [n, l, f]``, the windows of the day's stocks, NaN = unknown, and returns a new tensor of the same shape.
"""

from __future__ import annotations

from typing import Callable, Sequence

import torch

from qlib_ext.errors import ConfigError, ShapeError

PRICE_VOLUME = ("OPEN", "HIGH", "LOW", "CLOSE", "VWAP", "VOLUME")
"""The columns that `price_volume` reads, in this order."""
LIMIT = 3.0
NO_SPREAD = 1e-6
"""Standard deviation up to which all stocks of a step count as equal."""


def price_volume(x: torch.Tensor) -> torch.Tensor:
    """Prices over the last close of the window, volume over its mean in the window, both less 1, clipped to [-3, 3].

        x'_{i,s} = p_{i,s} / c_{i,last} - 1          v'_{i,s} = v_{i,s} / mean_{s'}(v_{i,s'}) - 1

    The last close is the last one known, so that a stock suspended on the day is measured by the close before; the mean is that of the
    days known. Unknown stays unknown, as does everything without a close, or with no volume, in the window. Adjusted prices and volumes
    give the same as raw ones without splits.

    Args:
        x: ``[n, l, 6]``, columns `PRICE_VOLUME`.

    Raises:
        ShapeError: another width.
    """
    if x.ndim != 3 or x.shape[-1] != len(PRICE_VOLUME):
        raise ShapeError(f"price_volume takes x [n, l, {len(PRICE_VOLUME)}] with the columns {PRICE_VOLUME}, got {tuple(x.shape)}")
    close = x[..., PRICE_VOLUME.index("CLOSE")]
    step = torch.arange(x.shape[1], device=x.device)
    last = close.gather(1, (close.isfinite() * step).amax(dim=1, keepdim=True))                     # [n, 1], NaN where no close is known
    usual = x[..., 5].nanmean(dim=1, keepdim=True)
    unit = torch.cat([last.expand(-1, 5), usual], dim=1)                                            # [n, f]
    return (x / torch.where(unit > 0, unit, torch.nan)[:, None] - 1).clamp(-LIMIT, LIMIT)


def price_volume_zscore(x: torch.Tensor) -> torch.Tensor:
    """`price_volume`, then each column at each step as a z-score over the day's stocks (divided by n), clipped to [-3, 3].

    Unknown values are neither counted nor filled. Where all known values are the same, as the last close always is, they become 0.
    """
    return cross_section(price_volume(x)).clamp(-LIMIT, LIMIT)


def cross_section(x: torch.Tensor) -> torch.Tensor:
    """``(x - mean) / std`` over the stocks of each step and column, of what is known; 0 where it does not differ, NaN stays NaN."""
    known = x.isfinite()
    count = known.sum(dim=0).clamp(min=1)
    rest = x - torch.where(known, x, 0.0).sum(dim=0) / count
    spread = (torch.where(known, rest, 0.0).square().sum(dim=0) / count).sqrt()
    return torch.where(known & (spread <= NO_SPREAD), 0.0, rest / spread)


WINDOW_TRANSFORMS = {"price_volume": price_volume, "price_volume_zscore": price_volume_zscore}
"""The transforms a dataset can name; functions of this module, so that a packed panel finds them again."""


def window_transform(name: str | None, columns: Sequence[str] | None = None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The transform of a name, None for None.

    Args:
        columns: of the features, where they are known.

    Raises:
        ConfigError: an unknown name, or columns that the transform does not read.
    """
    if name is None:
        return None
    if name not in WINDOW_TRANSFORMS:
        raise ConfigError(f"window_transform={name!r} is unknown; choose one of {sorted(WINDOW_TRANSFORMS)}")
    if columns is not None and tuple(columns) != PRICE_VOLUME:
        raise ConfigError(f"window_transform={name!r} reads the columns {list(PRICE_VOLUME)}, the handler gives {len(columns)} "
                          f"({list(columns)[:6]}): use PriceVolume of qlib_ext.data.price_volume")
    return WINDOW_TRANSFORMS[name]
