"""A Qlib store of a few files, written byte by byte: what the tests of the data adapters read."""
import numpy as np
import pandas as pd


def write_store(folder, calendar, bars, universes):
    """`bars`: {code: {field: array over the whole calendar}}; `universes`: {name: [(code, start, end), ...]}."""
    calendar = pd.DatetimeIndex(calendar)
    for part in ("calendars", "instruments"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in calendar))
    for name, members in universes.items():
        (folder / "instruments" / f"{name}.txt").write_text("".join(f"{c}\t{a}\t{b}\n" for c, a, b in members))
    for code, fields in bars.items():
        place = folder / "features" / code.lower()
        place.mkdir(parents=True, exist_ok=True)
        for field, values in fields.items():
            np.r_[0.0, values].astype("<f4").tofile(place / f"{field}.day.bin")
    return folder


def start_qlib(folder):
    """Point Qlib at the store, one process, no caches from another test."""
    import qlib

    qlib.init(provider_uri=str(folder), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=40)
