"""MLflow: one run per stage run, in an experiment named after the stage, with parameters, metrics and lineage tags.

Stages use MLflow only through this module (except the registry and the packed model of `register`). The address of the server is
MLFLOW_TRACKING_URI; the default is mlflow.db in the current folder. Artifacts of a SQLite store lie in mlruns/ beside it.

The server must be reachable when a stage begins. If the connection is lost later, the stage continues: messages wait in an outbox
and are sent when the server is back. Messages that are still unsent at the end are written to OUT.partial/RUN.unsent, and the next
stage with an output beside OUT sends them. A killed process leaves no such file; when it is resumed, the epochs of history.csv
that MLflow lacks are sent.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from components.common.errors import TemporaryError, UserError
from components.common.formats.documents import LONGEST_KEY, mlflow_key
from components.common.formats.history import EPOCH, HISTORY, parse_history
from components.common.runs import provenance, sqlite_store, storage
from components.common.runs.delivery import Message, copy, deliver, shown
from components.common.runs.lineage import run_name, tags
from components.common.runs.outbox import Outbox
from components.common.runs.params import flatten
from components.common.runs.signals import Interrupted
from components.common.runs.system_metrics import PREFIX, SystemMetrics
from components.common.runs.work import RUN_ID_FILE, Work

# A few seconds are enough to find out that a server cannot be reached.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # of PostgreSQL's client, which has none
# No telemetry about the runs of a hospital.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from sqlalchemy.exc import SQLAlchemyError

from components.common.runs.mlflow_errors import explain, is_temporary

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"  # environment variable with the id of a run that the orchestrator has opened
PIPELINE = "pipeline"  # experiment of the runs that a pipeline opens, whose child runs are those of its stages
UNSENT, FILES = ".unsent", ".files"  # suffixes of the messages in OUT.partial that could not be sent, and of their files
WAIT_SECONDS = 60.0  # how long the end of a stage waits for a lost server
WAIT_SECONDS_STOPPED = 5.0  # the same after a signal or a failure: Kubernetes kills a pod 30 s after SIGTERM

log = logging.getLogger(__name__)

database.MAX_RETRY_COUNT = 1  # of attempts to connect; with its 10, MLflow takes 100 s and prints each failure
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs every retry; the outbox reports the outcome once


class Tracker:
    """Writes to one MLflow run. Only `flush` waits for the server."""

    def __init__(self, work: Work, run_id: str, client: MlflowClient):
        self.run_id, self.client = run_id, client
        self._points = _logged_points(client, run_id) if work.resumed else {}
        # Copies of the attached files, since `publish` renames the work folder, perhaps while they are being uploaded.
        self.files = work.folder.with_name(run_id + FILES)
        shutil.rmtree(self.files, ignore_errors=True)  # those of a killed process
        self._outbox: Outbox[Message] = Outbox(partial(deliver, client, run_id), server_name())

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step (an epoch); NaN is left out, since charts cannot show it.

        An epoch that a resumed run repeats is not logged twice.
        """
        now = int(time.time() * 1000)
        named = {mlflow_key(name, LONGEST_KEY): float(value) for name, value in metrics.items() if value == value}
        new = {name: value for name, value in named.items() if not self._is_known(name, step, value)}
        self._points |= {(name, step): value for name, value in new.items()}
        if new:
            self._outbox.put(Message(points=tuple((name, value, now, step) for name, value in new.items())))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._outbox.put(Message(tags=_keyed(tags)))

    def attach(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or the files of a folder, as artifacts of the run.

        Args:
            path: copied at once, so that it may change or move afterwards.
            folder: target folder among the artifacts.
        """
        copied = copy(path, self.files.absolute() / str(time.monotonic_ns()))
        self._outbox.put(Message(file=str(copied), folder=folder))

    def flush(self) -> None:
        """Waits until everything is sent.

        Raises:
            UserError: the connection to the server is lost.
        """
        if not self._outbox.flush(WAIT_SECONDS):
            raise TemporaryError(f"{server_name()} is lost; start it again and repeat the command")

    def log_system_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the state of the machine, unless the server is lost."""
        if not self._outbox.lost:
            self.log(metrics, step)

    def end(self, status: str, seconds: float) -> list[Message]:
        """Sets the status of the run (if not empty) and returns the messages that could not be sent in time."""
        if status:
            self._outbox.put(Message(status=status))
        return self._outbox.close(seconds)

    def _is_known(self, name: str, step: int, value: float) -> bool:
        return (name, step) in self._points and (step > 0 or self._points[name, step] == value)


@contextmanager
def begin(work: Work) -> Iterator[Tracker]:
    """Opens the MLflow run of a stage's run: a resumed one continues its run, and one that the orchestrator opened is used.

    Raises:
        UserError: the tracking server cannot be reached.
    """
    server = client()
    with reachable():
        _deliver_leftovers(server, work)
        run_id, ours = _find_or_create(server, work)
        began = server.get_run(run_id).info.start_time / 1000
        tracker = Tracker(work, run_id, server)
    _send_history(tracker, work.folder / HISTORY)
    try:
        with SystemMetrics(_monitors(), tracker.log_system_metrics, began):
            yield tracker
    except BaseException as error:
        status = RunStatus.KILLED if isinstance(error, Interrupted) else RunStatus.FAILED
        _end(tracker, work, RunStatus.to_string(status) if ours else "", WAIT_SECONDS_STOPPED)
        raise
    _end(tracker, work, RunStatus.to_string(RunStatus.FINISHED) if ours else "", WAIT_SECONDS)


def uri() -> str:
    """Returns the address of the tracking server."""
    return sqlite_store.absolute(os.environ.get("MLFLOW_TRACKING_URI") or sqlite_store.DEFAULT_URI)


def server_name() -> str:
    """Returns how messages call the server: by its address, without a password."""
    return f"MLflow at {shown(uri())}"


def client() -> MlflowClient:
    """Returns a client of the tracking server after one successful request.

    Raises:
        UserError: it cannot be reached.
    """
    with reachable(first=True), sqlite_store.creating(uri()):
        found = MlflowClient(uri())
        found.search_experiments(max_results=1)
    return found


@contextmanager
def reachable(first: bool = False) -> Iterator[None]:
    """Turns failures of the MLflow server, its database or its artifact store into a UserError; `first`: no request has succeeded yet."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: no database driver
        raise (TemporaryError if is_temporary(error) else UserError)(explain(server_name(), error, first)) from None


def _find_or_create(client: MlflowClient, work: Work) -> tuple[str, bool]:
    """Returns the id of the run, and whether it is ours to close (rather than the orchestrator's)."""
    given = os.environ.get(RUN_ID_VARIABLE)
    if given and client.get_run(given).data.tags.get("stage", work.stage) == work.stage:
        _describe(client, given, work)
        return given, False
    # Several stages in one pipeline run: each gets a child run.
    return _find(client, work) or _create(client, work, given), True


def _create(client: MlflowClient, work: Work, parent: str | None) -> str:
    """Creates a run and notes its id in the work folder, for a resumed run."""
    above = {"mlflow.parentRunId": parent} if parent else {}
    run_id: str = client.create_run(experiment(client, work.stage), run_name=run_name(work), tags=above).info.run_id
    _describe(client, run_id, work)
    storage.write(str(work.folder / RUN_ID_FILE), run_id.encode())
    return run_id


def _describe(client: MlflowClient, run_id: str, work: Work) -> None:
    """Logs parameters, lineage and inputs."""
    values = work.params | ({"runtime": work.runtime} if work.runtime else {})
    params = {name: str(value) for name, value in flatten(values).items()}
    deliver(client, run_id, Message(params=_keyed(params), tags=_keyed(tags(work))))
    # No addresses: they could name a server or folder of a hospital. The digest identifies the data, the run id their origin.
    _log_inputs(client, run_id, [_dataset(name, value, work) for name, value in work.inputs.items()])


def _keyed(values: Mapping[str, str]) -> dict[str, str]:
    """Returns values by the names that MLflow takes."""
    return {mlflow_key(name, LONGEST_KEY): value for name, value in values.items()}


def _log_inputs(client: MlflowClient, run_id: str, inputs: list[DatasetInput]) -> None:
    """Logs inputs. If two runs log the same new input at the same time, the server refuses one of them, which then tries again."""
    for _ in inputs:  # each may be refused once
        try:
            return client.log_inputs(run_id, inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
    client.log_inputs(run_id, inputs)


def _dataset(name: str, sha256: str, work: Work) -> DatasetInput:
    """Describes an input for MLflow, which allows digests of at most 36 characters."""
    source = json.dumps({"sha256": sha256, "mlflow_run_id": work.upstream.get(name)})
    return DatasetInput(Dataset(name, sha256[:36], "sha256", source), [InputTag("mlflow.data.context", work.stage)])


def _find(client: MlflowClient, work: Work) -> str | None:
    note = work.folder / RUN_ID_FILE
    if not note.is_file():
        return None
    run_id = note.read_text()
    try:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    except MlflowException:
        return None  # another server, or the run was deleted: create a new one
    return run_id


def experiment(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=sqlite_store.artifacts(uri(), name)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # created by another process meanwhile
            if found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        identity = found.experiment_id
        raise UserError(f"{server_name()}: experiment {name} is deleted; run `mlflow experiments restore --experiment-id {identity}`")
    return str(found.experiment_id)


def pipeline_run_id() -> str | None:
    """Returns the id of the run that the first step of this pipeline run opened, or None."""
    return next((run_id for run_id, experiment_name, _ in pipeline_runs() if experiment_name == PIPELINE), None)


def pipeline_runs() -> list[tuple[str, str, str]]:
    """Lists the MLflow runs of this pipeline run: id, name of the experiment, status."""
    identity = os.environ.get(provenance.KFP_VARIABLE)
    if not identity:
        return []
    server = client()
    with reachable():
        names = {found.experiment_id: found.name for found in server.search_experiments()}
        runs = server.search_runs(list(names), f"tags.`kfp.run_id` = '{identity}'")
    return [(run.info.run_id, names[run.info.experiment_id], run.info.status) for run in runs]


def _logged_points(client: MlflowClient, run_id: str) -> dict[tuple[str, int], float]:
    """Returns the values that a run holds already, by metric and step."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(PREFIX)]
    return {(name, point.step): point.value for name in names for point in client.get_metric_history(run_id, name)}


def _send_history(tracker: Tracker, path: Path) -> None:
    """Sends the epochs that a killed process could not send."""
    if path.is_file():
        for row in parse_history(path.read_bytes(), str(path)):
            epoch = int(row.pop(EPOCH))
            tracker.log(row, epoch)


def _end(tracker: Tracker, work: Work, status: str, seconds: float) -> None:
    """Closes the run. A lost server must not hide the outcome of the stage, so that this does not raise."""
    rest = tracker.end(status, seconds)
    if not rest:
        return _remove(tracker.files)
    note = work.folder.with_name(tracker.run_id + UNSENT)
    content = {"uri": uri(), "run_id": tracker.run_id, "messages": [list(message) for message in rest]}
    try:
        storage.write_json(note, content)
    except UserError as error:
        log.warning("MLflow run %s could not be completed, and its last messages are lost: %s", tracker.run_id, error)
        return _remove(tracker.files)
    log.warning("MLflow run %s could not be completed; the next stage beside %s sends the rest", tracker.run_id, work.out)


def _deliver_leftovers(client: MlflowClient, work: Work) -> None:
    """Sends the messages that earlier stages beside this one could not send."""
    folders = "*.partial" if work.folder.parent.name.endswith(".partial") else "*"
    for path in sorted(work.folder.parents[1].glob(f"{folders}/*{UNSENT}")):
        left = json.loads(path.read_text())
        if left["uri"] != uri():
            continue
        for message in left["messages"]:
            deliver(client, left["run_id"], Message(*message))
        path.unlink(missing_ok=True)
        _remove(path.with_suffix(FILES))
        log.info("MLflow run %s is complete now", left["run_id"])


def _remove(files: Path) -> None:
    """Removes the copies of attached files, and OUT.partial if nothing else is in it."""
    shutil.rmtree(files, ignore_errors=True)
    with suppress(OSError):  # unfinished work
        files.parent.rmdir()


def _monitors() -> list[Any]:
    """Returns the monitors that work on this machine; that of the GPU needs nvidia-ml-py."""
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
    monitors = [kind() for kind in kinds]
    with suppress(Exception):  # no NVML, no driver, or no GPU
        monitors.append(cast(Any, GPUMonitor)())
    return monitors
