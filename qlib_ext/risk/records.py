"""Records of Qlib workflows that make risk snapshots."""

from __future__ import annotations

from pathlib import Path

from qlib.workflow.record_temp import RecordTemp

from qlib_ext.errors import ConfigError
from qlib_ext.risk.model import RiskOptions, write_exposures


class SnapshotRecord(RecordTemp):
    """Exposures of a risk network become a snapshot store.

    ``model.exposures(dataset)`` gives the exposures of all days; factor returns, covariances and specific variances are estimated from
    them as from styles (`qlib_ext.risk.estimate`). A recorder keeps the folder's name in ``risk_snapshots.pkl``.

    Args:
        model, dataset: fitted, with an `exposures` method.
        out: folder of the snapshot store; what it holds is replaced.
        cap, universe, covariance: as `RiskOptions`.

    Raises:
        ConfigError: a model without exposures, or an option out of range.
    """

    artifact_path = "risk"

    def __init__(self, recorder, model, dataset, out: str, cap: str = "auto", universe: str | None = None, covariance: dict | None = None):
        super().__init__(recorder)
        if not callable(getattr(model, "exposures", None)):
            raise ConfigError(f"{type(model).__name__} has no exposures(dataset): SnapshotRecord is for risk networks such as DeepRisk")
        self.model, self.dataset, self.out = model, dataset, Path(out).expanduser()
        self.options = RiskOptions(cap=cap, universe=universe, covariance=dict(covariance or {}))

    def generate(self, **kwargs) -> None:
        """Write the snapshots."""
        segments = {name: [str(day) for day in span] for name, span in (getattr(self.dataset, "segments", None) or {}).items()}
        about = {"model": type(self.model).__name__, "segments": segments}                   # days of train and valid are in-sample
        store = write_exposures(self.model.exposures(self.dataset), self.out, self.options, about=about)
        self.save(**{"risk_snapshots.pkl": {"folder": str(self.out), "days": [str(store.days[0]), str(store.days[-1])]}})

    def list(self) -> list[str]:
        """Names of what is saved."""
        return ["risk_snapshots.pkl"]
