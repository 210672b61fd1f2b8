"""Where runs are kept: an experiment manager for a local sqlite file, with the artefacts beside it."""

import fcntl
import json
import re
from pathlib import Path

from mlflow.exceptions import MlflowException
from qlib.config import C
from qlib.utils.exceptions import ExpAlreadyExistError
from qlib.workflow.exp import MLflowExperiment
from qlib.workflow.expm import MLflowExpManager

from qlib_ext.errors import DataError
from qlib_ext.store.metadata import read_metadata

PREFIX = "sqlite:///"
TAG = "qlib_ext."


def resolve_uri(uri: str) -> str:
    """The tracking uri with `~` and a relative path made absolute; other than sqlite uris are returned as they are."""
    if not str(uri).startswith(PREFIX):
        return str(uri)
    return PREFIX + str(Path(str(uri)[len(PREFIX):]).expanduser().absolute())


def database_path(uri: str) -> Path | None:
    """The file behind a sqlite uri, or None for another kind of uri."""
    return Path(resolve_uri(uri)[len(PREFIX):]) if str(uri).startswith(PREFIX) else None


def data_tags(store) -> dict[str, str]:
    """Tags of a run on a store: its folder, its fingerprint, whether the data are generated, and then the best possible IC.

    A folder made elsewhere, or none at all, has the first tag only. The best possible IC is JSON, universe -> mean over all years
    (null: no signal).
    """
    from qlib_ext.demo.build import read_truth
    tags = {TAG + "store": str(store)}
    try:
        metadata = read_metadata(store)
    except DataError:
        metadata = None
    if metadata is None:
        return tags
    tags[TAG + "store_fingerprint"] = metadata["fingerprint"]
    tags[TAG + "generated"] = json.dumps(bool(metadata.get("generated")))
    truth = read_truth(store) if metadata.get("generated") else None
    if truth is not None:
        best = {name: years["total"] for name, years in truth["best_possible_ic"].items()}
        tags[TAG + "best_possible_ic"] = json.dumps(best)
    return tags


class SqliteExpManager(MLflowExpManager):
    """Qlib's `MLflowExpManager` for a sqlite file that need not exist yet.

    Qlib's own needs the folder of the database to be there, does not expand `~`, and leaves the artefacts to MLflow's
    default, `mlruns` in whatever folder the run was started from. Here the folder is made when tracking begins, and
    an experiment created here keeps its artefacts under `artifacts`. Experiments that exist keep their place.

    Parameters
    ----------
    uri : `sqlite:///PATH`, where PATH may begin with `~`; any other uri works as in Qlib.
    default_exp_name : experiment used when none is named.
    artifacts : folder of the artefacts; by default `artifacts` beside the database.
    """

    def __init__(self, uri: str, default_exp_name: str = "Experiment", artifacts: str | None = None):
        super().__init__(uri=resolve_uri(uri), default_exp_name=default_exp_name)
        self.artifacts = artifacts

    @property
    def client(self):
        """MLflow's client; once it is asked for, the database is there. Two runs that start together wait for each other, since
        MLflow fails when two processes make its tables at the same time."""
        path = database_path(self.uri)
        if path is None:
            return super().client
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return super().client

    def _start_exp(self, **options) -> MLflowExperiment:
        """Qlib's, and the run is tagged with what its data are (`data_tags`)."""
        experiment = super()._start_exp(**options)
        if C.registered and experiment.active_recorder is not None:
            experiment.active_recorder.set_tags(**data_tags(C.dpm.get_data_uri("day")))
        return experiment

    def artifact_location(self, experiment_name: str) -> str | None:
        """Folder for a new experiment's artefacts; None (MLflow's choice) where there is no local database."""
        path = database_path(self.uri)
        if self.artifacts is None and path is None:
            return None
        root = Path(self.artifacts).expanduser().absolute() if self.artifacts else path.parent / "artifacts"
        return str(root / re.sub(r"[^\w.\-]+", "_", experiment_name))

    def create_exp(self, experiment_name: str | None = None) -> MLflowExperiment:
        """Create an experiment whose artefacts lie under `artifacts`.

        Raises
        ------
        ExpAlreadyExistError : another process made it meanwhile (Qlib then opens that one).
        """
        name = experiment_name or self._default_exp_name
        try:
            identifier = self.client.create_experiment(name, artifact_location=self.artifact_location(name))
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                raise ExpAlreadyExistError() from error
            raise
        return MLflowExperiment(identifier, name, self.uri)
