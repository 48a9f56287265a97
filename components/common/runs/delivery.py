"""Messages to an MLflow run. Sending one twice is harmless, since a failed call may have reached the server."""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:  # MLflow is imported once tracking has told it how to behave
    from mlflow import MlflowClient
    from mlflow.entities import Run

REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # error codes of requests that would fail again

log = logging.getLogger(__name__)


class Message(NamedTuple):
    """A message to a run. Points carry their time, so that sending them again changes nothing."""

    points: tuple[tuple[str, float, int, int], ...] = ()  # metric, value, time in milliseconds since 1970, step
    tags: Mapping[str, str] = {}
    file: str = ""  # file or folder to upload
    folder: str | None = None  # target folder among the artifacts of the run
    status: str = ""  # final status of the run
    params: Mapping[str, str] = {}


def deliver(client: "MlflowClient", run_id: str, message: Message) -> None:
    """Sends a message; what the server rejects for good is logged and dropped, and the rest of the message is sent.

    Raises:
        ConnectionError: sending failed, and may succeed later.
    """
    refusals = _refusals(client, run_id, message)
    if refusals and len(parts := _parts(message)) > 1:
        refusals = [refusal for part in parts for refusal in _refusals(client, run_id, part)]
    if refusals:
        log.warning("MLflow rejected %d of %d values of run %s (%s)", len(refusals), len(_parts(message)), run_id, refusals[0])


def copy(path: Path, folder: Path) -> Path:
    """Copies a file or folder into a new folder."""
    folder.mkdir(parents=True)
    return Path(shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder))


def reason(error: Exception) -> str:
    """Returns the first line of the message of an error, without a password: MLflow's client quotes the address of the server."""
    return shown((str(error).splitlines() or [type(error).__name__])[0])[:200]


def shown(text: str) -> str:
    """Replaces the password in an address, which may be part of a text."""
    return re.sub(r"(?<=:)[^/@\s]+(?=@)", "***", text)


def ui(server: str) -> str:
    """Returns the address of the UI of a server, without a login; empty if `server` is a database."""
    address = urlsplit(server)
    if not address.scheme.startswith("http"):
        return ""
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")


def run_page(server: str, run: "Run") -> str:
    """Returns the page of a run in the UI of a server; empty if `server` is a database."""
    return f"{place}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" if (place := ui(server)) else ""


def _refusals(client: "MlflowClient", run_id: str, message: Message) -> list[str]:
    """Sends a message; returns why the server rejects it, or nothing."""
    from mlflow.entities import Metric, Param, RunTag

    try:
        if message.points or message.tags or message.params:
            params, tags = [Param(*item) for item in message.params.items()], [RunTag(*item) for item in message.tags.items()]
            client.log_batch(run_id, [Metric(*point) for point in message.points], params, tags)
        if message.file:
            _upload(client, run_id, Path(message.file), message.folder)
        if message.status:
            client.set_terminated(run_id, message.status)
    except Exception as error:  # database drivers and artifact stores raise errors of their own
        if getattr(error, "error_code", None) not in REFUSALS:
            raise ConnectionError(reason(error)) from error
        return [reason(error)]
    return []


def _parts(message: Message) -> list[Message]:
    """Splits a message into messages of one point, tag, parameter, file or status."""
    points = [Message(points=(point,)) for point in message.points]
    tags = [Message(tags=dict([tag])) for tag in message.tags.items()]
    params = [Message(params=dict([param])) for param in message.params.items()]
    files = [Message(file=message.file, folder=message.folder)] if message.file else []
    return [*points, *tags, *params, *files, *([Message(status=message.status)] if message.status else [])]


def _upload(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    elif path.is_file():
        client.log_artifact(run_id, str(path), folder)
    else:
        log.warning("%s was deleted before it could be uploaded to MLflow", path)
