"""Reading the output folders of earlier stages."""

from typing import Any

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD, RunRecord, check_document, parse_json
from components.common.formats.model import DESCRIPTION, upgrade_description
from components.common.runs import storage


def require_output(uri: str, name: str, made_by: str) -> None:
    """Checks that the folder `uri` is a finished output of a stage, which writes the file `name`.

    Raises:
        UserError: the file is missing, or the output is not complete.
    """
    path = storage.join(uri, name)
    if not storage.exists(path):
        raise UserError(f"{path}: not found; {uri} must be the output folder of {made_by}")
    if not storage.exists(storage.join(uri, RUN_RECORD)):
        raise UserError(f"{uri}: has no {RUN_RECORD}, so {made_by} has not finished; run it again")


def read_document(uri: str, name: str, made_by: str) -> tuple[dict[str, Any], str]:
    """Reads the JSON document `name` of a finished output; returns its content and its SHA-256.

    Raises:
        UserError: as for `require_output`, or it is not JSON.
    """
    require_output(uri, name, made_by)
    path = storage.join(uri, name)
    content = storage.read(path)
    return parse_json(content, path, made_by), storage.digest(content)


def read_model(uri: str, made_by: str) -> tuple[dict[str, Any], str]:
    """Reads model.json of a finished output of a head; arguments, result and errors as for `read_document`."""
    found, digest = read_document(uri, DESCRIPTION, made_by)
    return upgrade_description(found, storage.join(uri, DESCRIPTION)), digest


def read_record(uri: str, required: tuple[str, ...] = ()) -> RunRecord:
    """Reads the run record of an output folder.

    Raises:
        UserError: it is missing or damaged, or lacks an entry that is `required`.
    """
    path, made_by = storage.join(uri, RUN_RECORD), "the stage that wrote it"
    return check_document(parse_json(storage.read(path), path, made_by), RunRecord, path, made_by, required)


def upstream_run_id(uri: str) -> str | None:
    """Returns the MLflow run id in the run record of an output folder."""
    return read_record(uri).get("mlflow_run_id") or None


def upstream_run_ids(folders: dict[str, str]) -> dict[str, str]:
    """Returns the MLflow run id by name of input, for those output folders whose run record has one."""
    found = {name: upstream_run_id(uri) for name, uri in folders.items()}
    return {name: run_id for name, run_id in found.items() if run_id}
