"""MLflow: one run per stage run, in an experiment named after the stage, with parameters, metrics and lineage tags.

Stages reach MLflow through this module alone (register's registry and packed model excepted). The server comes from
MLFLOW_TRACKING_URI; without it, mlflow.db in the current folder. Artifacts of a SQLite store lie in mlruns/ beside it.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from components.common.errors import UserError
from components.common.interrupt import Interrupted
from components.common.job import Job, git_state

# One attempt and a few seconds are enough to say that a server is not there.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Nothing about a hospital's runs is reported to MLflow's makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
RUN_ID_FILE = "mlflow_run_id"

log = logging.getLogger(__name__)

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line a retry; what becomes of them is said once


class Tracker:
    """Writes to one MLflow run. All methods raise UserError when the server cannot be reached."""

    def __init__(self, client: MlflowClient, run_id: str):
        self._client = client
        self.run_id = run_id

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step (an epoch); NaN is left out, since charts cannot show it."""
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in metrics.items() if value == value]
        with reachable():
            self._client.log_batch(self.run_id, metrics=batch)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        with reachable():
            self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def attach(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file as an artifact of the run."""
        with reachable():
            self._client.log_artifact(self.run_id, str(path), folder)


@contextmanager
def run(job: Job) -> Iterator[Tracker]:
    """The MLflow run of a job: a resumed job continues the run that it began.

    Raises:
        UserError: the tracking server cannot be reached.
    """
    server = client()
    with reachable():
        run_id = _find(server, job) or _create(server, job)
    try:
        yield Tracker(server, run_id)
    except BaseException as error:
        _end(server, run_id, RunStatus.KILLED if isinstance(error, Interrupted) else RunStatus.FAILED)
        raise
    _end(server, run_id, RunStatus.FINISHED)


def uri() -> str:
    """Address of the tracking server. A relative SQLite path is made absolute: MLflow keeps connections by address."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return f"{SQLITE}{Path(address.removeprefix(SQLITE)).absolute()}" if address.startswith(SQLITE) else address


def client() -> MlflowClient:
    """A client of the tracking server, which has answered once.

    Raises:
        UserError: it cannot be reached.
    """
    with reachable():
        found = MlflowClient(uri())
        found.search_experiments(max_results=1)
    return found


@contextmanager
def reachable() -> Iterator[None]:
    """Turns what MLflow raises when its server, database or artifact store fails into a UserError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: no driver for this database
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"MLflow at {uri()} cannot be used ({reason}); start it or set MLFLOW_TRACKING_URI") from None


def lineage(job: Job) -> dict[str, str]:
    """Tags that say where a run comes from: code, inputs, and the MLflow runs that made them."""
    git = git_state()
    tags = {
        "stage": job.stage,
        "fingerprint": job.fingerprint,
        "mlflow.source.git.commit": git["commit"] or "unknown",
        "git.dirty": str(git["dirty"]).lower(),
    }
    tags |= {f"input.{name}.sha256": value for name, value in job.inputs.items()}
    return tags | {f"upstream.{name}.run_id": value for name, value in job.upstream.items()}


def _end(client: MlflowClient, run_id: str, status: int) -> None:
    """Closes the run. The stage's own outcome counts: that MLflow has just gone away must not hide it."""
    name = RunStatus.to_string(status)
    try:
        client.set_terminated(run_id, name)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        log.warning("MLflow run %s could not be marked %s (%s)", run_id, name, str(error).splitlines()[0][:200])


def _create(client: MlflowClient, job: Job) -> str:
    """Begins the run and notes its id in the work folder, for a resumed job."""
    run_id: str = client.create_run(_experiment(client, job.stage), run_name=_name(job)).info.run_id
    params = [Param(name, str(value)) for name, value in job.params.items()]
    tags = [RunTag(name, value) for name, value in lineage(job).items()]
    client.log_batch(run_id, params=params, tags=tags)
    (job.work / RUN_ID_FILE).write_text(run_id)
    return run_id


def _experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment, made if it is not there."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifacts(name)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        identity = found.experiment_id
        raise UserError(f"MLflow at {uri()}: experiment {name} is deleted; run `mlflow experiments restore --experiment-id {identity}`")
    return str(found.experiment_id)


def _artifacts(experiment: str) -> str | None:
    """Beside the database, where MLflow would take the current folder; a server decides for itself."""
    address = uri()
    return str(Path(address.removeprefix(SQLITE)).parent / "mlruns" / experiment) if address.startswith(SQLITE) else None


def _find(client: MlflowClient, job: Job) -> str | None:
    note = job.work / RUN_ID_FILE
    if not note.is_file():
        return None
    run_id = note.read_text()
    try:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    except MlflowException:
        return None  # another server, or the run was deleted: a new one is begun
    return run_id


def _name(job: Job) -> str:
    parts = [job.stage, *(str(job.params[key]) for key in ("preset", "arch") if key in job.params), job.fingerprint[:6]]
    return "-".join(parts)
