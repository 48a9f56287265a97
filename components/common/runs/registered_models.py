"""Download of registered models from MLflow."""

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from components.common.errors import UserError
from components.common.runs import tracking

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
    except MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{uri}: MLflow at {tracking.uri()} cannot give this model ({reason}); name another or start its store") from None
