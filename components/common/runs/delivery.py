"""Messages to an MLflow run. Sending one twice is harmless, since a failed call may have reached the server."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # MLflow is imported once tracking has told it how to behave
    from mlflow import MlflowClient

REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # error codes of requests that would fail again

log = logging.getLogger(__name__)


class Message(NamedTuple):
    """A message to a run. Points carry their time, so that sending them again changes nothing."""

    points: tuple[tuple[str, float, int, int], ...] = ()  # metric, value, time in milliseconds since 1970, step
    tags: Mapping[str, str] = {}
    file: str = ""  # file or folder to upload
    folder: str | None = None  # target folder among the artifacts of the run
    status: str = ""  # final status of the run


def deliver(client: "MlflowClient", run_id: str, message: Message, work: Path, out: str) -> None:
    """Sends a message; one that the server rejects for good is logged and dropped.

    Files of the folder `work` may have moved to `out` meanwhile.

    Raises:
        ConnectionError: sending failed, and may succeed later.
    """
    from mlflow.entities import Metric, RunTag

    try:
        if message.points:
            client.log_batch(run_id, metrics=[Metric(*point) for point in message.points])
        if message.tags:
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in message.tags.items()])
        if message.file:
            _upload(client, run_id, _current(Path(message.file), work, out), message.folder)
        if message.status:
            client.set_terminated(run_id, message.status)
    except Exception as error:  # database drivers and artifact stores raise errors of their own
        if getattr(error, "error_code", None) not in REFUSALS:
            raise ConnectionError(reason(error)) from error
        log.warning("MLflow rejected a message to run %s (%s)", run_id, reason(error))


def copy(path: Path, folder: Path) -> Path:
    """Copies a file or folder into a new folder."""
    folder.mkdir()
    return Path(shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder))


def reason(error: Exception) -> str:
    """Returns the first line of the message of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _upload(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    elif path.is_file():
        client.log_artifact(run_id, str(path), folder)
    else:
        log.warning("%s was deleted before it could be uploaded to MLflow", path)


def _current(path: Path, work: Path, out: str) -> Path:
    """Returns where a file of the work folder is now: it may have moved to the output."""
    if path.exists() or not path.is_relative_to(work.absolute()):
        return path
    return Path(out).absolute() / path.relative_to(work.absolute())
