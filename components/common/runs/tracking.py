"""MLflow: one run per stage run, in an experiment named after the stage, with parameters, metrics and lineage tags.

Stages reach MLflow through this module alone (register's registry and packed model excepted). The server comes from
MLFLOW_TRACKING_URI; without it, mlflow.db in the current folder. Artifacts of a SQLite store lie in mlruns/ beside it.

A server must be there when a stage begins. If it is lost later the stage goes on: what it misses waits in an outbox, is sent
once the server is back, and lies in OUT.partial/RUN.unsent if it was not back in time; the next stage beside OUT sends that. A
process that was killed leaves no such file: when it is resumed, what MLflow lacks of history.csv is sent.
"""

import csv
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.delivery import Message, copy, deliver, reason
from components.common.runs.job import Job, flat, write_json
from components.common.runs.lineage import run_name, tags
from components.common.runs.outbox import Outbox
from components.common.runs.signals import Interrupted
from components.common.runs.system_metrics import PREFIX, Gauges

# One attempt and a few seconds are enough to say that a server is not there.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Nothing about a hospital's runs is reported to MLflow's makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from sqlalchemy.exc import SQLAlchemyError

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
RUN_ID_FILE = "mlflow_run_id"
RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
"""Names a run that the orchestrator has opened."""
HISTORY = "history.csv"
"""Of the training stages: a row an epoch."""
UNSENT = ".unsent"
WAIT_SECONDS = 60.0
"""For a lost server, at the end of a stage."""
WAIT_SECONDS_STOPPED = 5.0
"""The same for a stage that was stopped or failed: Kubernetes kills 30 s after its signal."""

log = logging.getLogger(__name__)

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line a retry; what becomes of them is said once


class Tracker:
    """Writes to one MLflow run, and never waits for it but in `flush`."""

    def __init__(self, job: Job, run_id: str, client: MlflowClient):
        self.run_id = run_id
        self._points = _logged_points(client, run_id) if job.resumed else {}
        # Where the output goes to S3 the work folder ends with the stage, perhaps before the server has taken its files.
        self._copies = tempfile.TemporaryDirectory() if storage.is_s3(job.out) else None
        work, out = job.work, job.out  # the outbox's thread must not keep the job, whose lock ends with it
        self._outbox: Outbox[Message] = Outbox(lambda message: deliver(client, run_id, message, work, out), f"MLflow at {uri()}")

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step (an epoch); NaN is left out, since charts cannot show it.

        An epoch that is repeated, since the last checkpoint was older, is not logged twice.
        """
        now = int(time.time() * 1000)
        new = {name: float(value) for name, value in metrics.items() if value == value and not self._is_known(name, step, float(value))}
        self._points |= {(name, step): value for name, value in new.items()}
        if new:
            self._outbox.put(Message(points=tuple((name, value, now, step) for name, value in new.items())))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._outbox.put(Message(tags=dict(tags)))

    def attach(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or the files of a folder, as artifacts of the run.

        Args:
            path: in the job's work folder, from where it is read later; elsewhere it must stay until `flush`.
            folder: where to.
        """
        if self._copies:
            path = copy(path, Path(self._copies.name, str(time.monotonic_ns())))
        self._outbox.put(Message(file=str(path.absolute()), folder=folder))

    def flush(self) -> None:
        """Waits until all is sent.

        Raises:
            UserError: the server is lost.
        """
        if not self._outbox.flush(WAIT_SECONDS):
            raise UserError(f"MLflow at {uri()} is lost; start it again and repeat the command")

    def gauge(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the state of the machine; not while the server is lost."""
        if not self._outbox.lost:
            self.log(metrics, step)

    def end(self, status: str, seconds: float) -> list[Message]:
        """Marks how the run ended (nothing, if that is not ours to say) and returns what could not be sent in time."""
        if status:
            self._outbox.put(Message(status=status))
        return self._outbox.close(seconds)

    def _is_known(self, name: str, step: int, value: float) -> bool:
        return (name, step) in self._points and (step > 0 or self._points[name, step] == value)


@contextmanager
def run(job: Job) -> Iterator[Tracker]:
    """The MLflow run of a job: a resumed job continues the run that it began, and one that the orchestrator opened is used.

    Raises:
        UserError: the tracking server cannot be reached.
    """
    server = client()
    with reachable():
        _deliver_leftovers(server, job)
        run_id, ours = _begin(server, job)
        began = server.get_run(run_id).info.start_time / 1000
        tracker = Tracker(job, run_id, server)
    _send_history(tracker, job.work / HISTORY)
    try:
        with Gauges(_monitors(), tracker.gauge, began):
            yield tracker
    except BaseException as error:
        status = RunStatus.KILLED if isinstance(error, Interrupted) else RunStatus.FAILED
        _end(tracker, job, RunStatus.to_string(status) if ours else "", WAIT_SECONDS_STOPPED)
        raise
    _end(tracker, job, RunStatus.to_string(RunStatus.FINISHED) if ours else "", WAIT_SECONDS)


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
        raise UserError(f"MLflow at {uri()} cannot be used ({reason(error)}); start it or set MLFLOW_TRACKING_URI") from None


def _begin(client: MlflowClient, job: Job) -> tuple[str, bool]:
    """Finds or creates the run of a job; whether it is ours, and not one that the orchestrator opened and will close."""
    given = os.environ.get(RUN_ID_VARIABLE)
    if given and client.get_run(given).data.tags.get("stage", job.stage) == job.stage:
        _describe(client, given, job)
        return given, False
    # Several stages in one pipeline run: each gets a run of its own below it.
    return _find(client, job) or _create(client, job, given), True


def _create(client: MlflowClient, job: Job, parent: str | None) -> str:
    """Begins a run and notes its id in the work folder, for a resumed job."""
    above = {"mlflow.parentRunId": parent} if parent else {}
    run_id: str = client.create_run(experiment(client, job.stage), run_name=run_name(job), tags=above).info.run_id
    _describe(client, run_id, job)
    (job.work / RUN_ID_FILE).write_text(run_id)
    return run_id


def _describe(client: MlflowClient, run_id: str, job: Job) -> None:
    """Parameters, lineage and inputs of a run."""
    params = [Param(name, str(value)) for name, value in flat(job.params).items()]
    client.log_batch(run_id, params=params, tags=[RunTag(name, value) for name, value in tags(job).items()])
    # No address: it could name a hospital's server or folder. The digest says which data, the run id where they come from.
    _log_inputs(client, run_id, [_dataset(name, value, job) for name, value in job.inputs.items()])


def _log_inputs(client: MlflowClient, run_id: str, inputs: list[DatasetInput]) -> None:
    """Logs inputs. Of two runs that begin at once with an input that the server does not know, it refuses one; then it knows it."""
    for _ in inputs:  # each can be refused once
        try:
            return client.log_inputs(run_id, inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
    client.log_inputs(run_id, inputs)


def _dataset(name: str, sha256: str, job: Job) -> DatasetInput:
    """An input as MLflow shows it; its digests have at most 36 characters."""
    source = json.dumps({"sha256": sha256, "mlflow_run_id": job.upstream.get(name)})
    return DatasetInput(Dataset(name, sha256[:36], "sha256", source), [InputTag("mlflow.data.context", job.stage)])


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


def experiment(client: MlflowClient, name: str) -> str:
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


def _logged_points(client: MlflowClient, run_id: str) -> dict[tuple[str, int], float]:
    """Value by metric and step, of what a run holds already."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(PREFIX)]
    return {(name, point.step): point.value for name in names for point in client.get_metric_history(run_id, name)}


def _send_history(tracker: Tracker, path: Path) -> None:
    """Sends the epochs that a killed process could not."""
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                epoch = int(float(row.pop("epoch")))
                tracker.log({name: float(value or "nan") for name, value in row.items()}, epoch)


def _end(tracker: Tracker, job: Job, status: str, seconds: float) -> None:
    """Closes the run. The stage's own outcome counts: that MLflow has gone away must not hide it."""
    rest = tracker.end(status, seconds)
    if not rest:
        return
    note = job.work.with_name(tracker.run_id + UNSENT)
    note.parent.mkdir(parents=True, exist_ok=True)
    content = {"uri": uri(), "run_id": tracker.run_id, "work": str(job.work), "out": job.out}
    write_json(note, content | {"messages": [list(message) for message in rest]})
    log.warning("MLflow run %s could not be completed; the next stage beside %s sends the rest", tracker.run_id, job.out)


def _deliver_leftovers(client: MlflowClient, job: Job) -> None:
    """Sends what earlier stages beside this one could not."""
    folders = "*.partial" if job.work.parent.name.endswith(".partial") else "*"
    for path in sorted(job.work.parents[1].glob(f"{folders}/*{UNSENT}")):
        left = json.loads(path.read_text())
        if left["uri"] != uri():
            continue
        for message in left["messages"]:
            deliver(client, left["run_id"], Message(*message), Path(left["work"]), left["out"])
        path.unlink(missing_ok=True)
        log.info("MLflow run %s is complete now", left["run_id"])


def _monitors() -> list[Any]:
    """What can be measured here; the GPU's needs nvidia-ml-py."""
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
    monitors = [kind() for kind in kinds]
    with suppress(Exception):  # no NVML, no driver, or no GPU
        monitors.append(cast(Any, GPUMonitor)())
    return monitors
