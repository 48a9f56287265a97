"""Downloads of models from MLflow."""

from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.runs import tracking
from components.common.runs.registered_models import download
from tests import disks


def test_a_full_disk_is_not_taken_for_a_lost_store(own_mlflow: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(2**20))
    client = tracking.client()
    run = client.create_run(tracking.experiment(client, "register"))
    client.log_artifact(run.info.run_id, str(tmp_path / "weights"))
    client.create_registered_model("model")
    client.create_model_version("model", run.info.artifact_uri, run.info.run_id)
    expected = "^[^:]*small/weights: no space left on device; free some space there"
    with disks.mounted(tmp_path / "small", "64k") as small, pytest.raises(UserError, match=expected):
        download("models:/model/1", small)
