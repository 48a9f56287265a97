"""What is sent to an MLflow run, and how: each message may be sent again, since the answer may have been lost, not the question."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # MLflow is imported once tracking has told it how to behave
    from mlflow import MlflowClient

REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""Answers that will not change when the same is sent again."""

log = logging.getLogger(__name__)


class Message(NamedTuple):
    """Something to be sent to a run. Points carry their time, so that sending one again changes nothing."""

    points: tuple[tuple[str, float, int, int], ...] = ()
    """Metric, value, milliseconds since 1970, step."""
    tags: Mapping[str, str] = {}
    file: str = ""
    """A file or folder to upload."""
    folder: str | None = None
    """Where to, among the run's artifacts."""
    status: str = ""
    """How the run ended."""


def deliver(client: "MlflowClient", run_id: str, message: Message, work: Path, out: str) -> None:
    """Sends a message.

    Raises:
        ConnectionError: it did not arrive, and may the next time.
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
    except Exception as error:  # the libraries of databases and artifact stores raise what they like
        if getattr(error, "error_code", None) not in REFUSALS:
            raise ConnectionError(reason(error)) from error
        log.warning("MLflow refuses a part of run %s (%s)", run_id, reason(error))


def copy(path: Path, folder: Path) -> Path:
    """A copy of a file or folder, of the same name, in a new folder."""
    folder.mkdir()
    return Path(shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder))


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _upload(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    elif path.is_file():
        client.log_artifact(run_id, str(path), folder)
    else:
        log.warning("%s is gone before MLflow could take it", path)


def _current(path: Path, work: Path, out: str) -> Path:
    """Where a file of the work folder is now: it may have become the output."""
    if path.exists() or not path.is_relative_to(work.absolute()):
        return path
    return Path(out).absolute() / path.relative_to(work.absolute())
