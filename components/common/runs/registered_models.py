"""Registered models in MLflow: their download, and files that are kept with a version."""

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.exceptions import MlflowException

from components.common.errors import UserError, disk_errors
from components.common.formats.documents import parse_json
from components.common.runs import storage, tracking
from components.common.runs.delivery import reason
from components.common.runs.mlflow_errors import refusal

NOTE = "registered_model_meta"
"""YAML file with `model_name` and `model_version` that MLflow writes beside the files of a registered model when it downloads them."""
SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")
_VERSION = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    run_id: str  # MLflow run that registered it; empty if there is none

    @property
    def uri(self) -> str:
        """Its address, which means the same model at any time."""
        return f"models:/{self.name}/{self.number}"


def is_version(uri: str) -> bool:
    """Whether an address is that of a version: models:/NAME/VERSION or models:/NAME@ALIAS."""
    return bool(_VERSION.fullmatch(uri))


def find_version(uri: str) -> Version:
    """Looks up the version that models:/NAME/VERSION or models:/NAME@ALIAS means at present; raises UserError if there is none."""
    found = _VERSION.fullmatch(uri)
    if not found:
        raise UserError(f"{uri}: is not the address of a version; give models:/NAME@ALIAS or models:/NAME/VERSION")
    client, (name, alias, number) = tracking.client(), found.groups()
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        server = tracking.server_name()
        why = refusal(server, error) or f"{server} has no such version ({reason(error)})"
        raise UserError(f"{uri}: {why}; name a registered version") from None
    return Version(name, str(version.version), str(version.run_id or ""))


def download(uri: str, folder: Path) -> None:
    """Copies the model at models:/NAME/VERSION, models:/NAME@ALIAS or another address of MLflow into a local folder.

    Raises:
        UserError: MLflow cannot be reached, or has no such model.
    """
    tracking.client()
    mlflow.set_tracking_uri(tracking.uri())
    try:
        with disk_errors(folder):
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        server = tracking.server_name()
        why = refusal(server, error) or f"{server} cannot give this model ({reason(error)}); name another or start its store"
        raise UserError(f"{uri}: {why}") from None


def keep(uri: str, path: Path) -> None:
    """Attaches a file to the run of a version, models:/NAME/VERSION or models:/NAME@ALIAS; raises UserError."""
    run_id = _run_id(uri)
    with tracking.reachable():
        tracking.client().log_artifact(run_id, str(path))


def kept(uri: str, name: str, made_by: str) -> tuple[dict[str, Any], str] | None:
    """Reads a JSON document that was attached to the run of a version; returns its content and its SHA-256, None if there is none.

    Raises:
        UserError: MLflow cannot be reached, or has no such version, or the file is not JSON.
    """
    run_id = _run_id(uri)
    with tracking.reachable(), tempfile.TemporaryDirectory() as folder:
        client = tracking.client()
        if name not in [item.path for item in client.list_artifacts(run_id)]:
            return None
        content = Path(client.download_artifacts(run_id, name, folder)).read_bytes()
    return parse_json(content, f"{uri}: {name}", made_by), storage.digest(content)


def _run_id(uri: str) -> str:
    run_id = find_version(uri).run_id
    if not run_id:
        raise UserError(f"{uri}: was registered without a run, which files could be attached to; register it by register")
    return run_id
