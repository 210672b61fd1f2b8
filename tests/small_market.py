"""One small generated market as a Qlib store, made once a session, and a handler of five features that loads in a moment."""
from functools import lru_cache
from pathlib import Path

import qlib
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader

from qlib_ext.data.handler import LeanHandler
from qlib_ext.demo.market import Market, make_market
from qlib_ext.demo.tables import write_tables
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import INDEX_NAMES

LABEL = "Ref($close,-6)/Ref($close,-1)-1"
FEATURES = {"KMID": "($close-$open)/$open", "ROC5": "Ref($close,5)/$close", "STD5": "Std($close,5)/$close",
            "VOL": "$volume/Mean($volume,10)", "TURN": "$turnover"}
SEGMENTS = {"train": ["2015-03-02", "2015-12-31"], "valid": ["2016-01-01", "2016-05-31"], "test": ["2016-06-01", "2016-12-30"]}


@lru_cache(maxsize=None)
def market() -> Market:
    """90 stocks, two years, indices of 12, 20 and 40 members."""
    return make_market(seed=8, stocks=90, end="2016-12-30", index_sizes=(12, 20, 40))


@lru_cache(maxsize=None)
def build_store(folder: Path) -> Path:
    """The market as a store."""
    ingest(write_tables(market(), folder / "tables"), folder / "store", generated=True,
           index_sizes=dict(zip(INDEX_NAMES, market().index_sizes)))
    return folder / "store"


def start_qlib(store: Path, **options) -> None:
    """Point Qlib at the store, in one process."""
    qlib.init(provider_uri=str(store), region="cn", kernels=1, expression_cache=None, dataset_cache=None,
              logging_level=30, **options)


class FiveFeatures(DataHandlerLP):
    """Five features and one label, through Qlib's own loader."""

    def __init__(self, label=LABEL, extra=None, **options):
        features = {**FEATURES, **(extra or {})}
        labels = [label] if isinstance(label, str) else list(label)
        loader = QlibDataLoader({"feature": (list(features.values()), list(features)),
                                 "label": (labels, [f"LABEL{k}" for k in range(len(labels))])})
        super().__init__(data_loader=loader, **options)


class LeanFiveFeatures(LeanHandler, FiveFeatures):
    """The same with this package's mixin."""


@lru_cache(maxsize=None)
def prepared(folder: Path) -> tuple[Path, Path]:
    """Store and folder of risk snapshots; Qlib is started on the store."""
    from qlib_ext.risk.model import prepare_snapshots
    store = build_store(folder)
    start_qlib(store)
    prepare_snapshots(folder / "risk", progress=False)
    return store, folder / "risk"
