"""Random streams of the demo market: each component has its own, drawn day by day, so that a new component, or a later last day,
leaves what was drawn before as it is."""

import numpy as np

STREAMS = {
    name: number
    for number, name in enumerate(
        ("stock", "pressure", "attention", "market_state", "market", "industry", "noise", "volatility", "bar", "volume", "event")
        + ("spell", "jump", "burst", "group", "premium", "value", "interest", "report", "announcement", "etf")
        + ("shape", "minute", "tick")
    )
}


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """Generator of one component; `keys` (0 or above) name a part of it with draws of its own, such as one stock on one day."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS[name], *keys)))
