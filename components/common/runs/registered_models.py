"""Download of registered models from MLflow."""

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from components.common.errors import UserError
from components.common.runs import tracking
from components.common.runs.delivery import reason
from components.common.runs.mlflow_errors import refusal

SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")


def download(uri: str, folder: Path) -> None:
    """Copies the model at models:/NAME/VERSION, models:/NAME@ALIAS or another address of MLflow into a local folder.

    Raises:
        UserError: MLflow cannot be reached, or has no such model.
    """
    tracking.client()
    mlflow.set_tracking_uri(tracking.uri())
    try:
        mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        server = tracking.server_name()
        why = refusal(server, error) or f"{server} cannot give this model ({reason(error)}); name another or start its store"
        raise UserError(f"{uri}: {why}") from None
