"""What all tests share: one torch thread, and the folder of real tables where there is one."""

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("QLIB_EXT_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def pytest_configure(config):
    """One thread: the tests are small, and the machine may be shared. No cache of features but where a test asks for one."""
    os.environ["QLIB_EXT_CACHE"] = "off"
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real tables (QLIB_EXT_REAL_DATA, or ../shared/data beside the project); skips where it is absent."""
    if not (REAL_DATA / "ashare_daily" / "bars.parquet").is_file():
        pytest.skip(f"no real tables in {REAL_DATA}: set QLIB_EXT_REAL_DATA to the folder that holds ashare_daily/")
    return REAL_DATA
