"""`mlflow models serve` answers a DICOM file posted by curl."""

import json
import subprocess
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest

from benchmarks.serve import phantom, request, serve
from components.common.runs import tracking  # noqa: F401 - quiets MLflow
from components.register.packing import pack
from tests.register import folders

pytestmark = pytest.mark.services


def test_a_dicom_file_posted_by_curl_is_scored(tmp_path: Path) -> None:
    model = Path(folders.write_model(tmp_path / "model", seed=1, targets=folders.targets_of(1)))
    pack(model / "model.safetensors", json.loads((model / "model.json").read_text()), "# A card\n", tmp_path / "packed")
    file = phantom(tmp_path / "raw", 80)
    (tmp_path / "request.json").write_bytes(request(file))
    with serve(tmp_path / "packed", tmp_path) as address:
        curl = ["curl", "--silent", "--header", "Content-Type: application/json", "--data", f"@{tmp_path / 'request.json'}"]
        done = subprocess.run([*curl, f"{address}/invocations"], capture_output=True, text=True, check=True)
        (answer,) = json.loads(done.stdout)["predictions"]
        (tmp_path / "request.json").write_text(json.dumps({"inputs": [str(file)]}))
        refused = subprocess.run([*curl, f"{address}/invocations"], capture_output=True, text=True, check=True)
    expected = mlflow.pyfunc.load_model(str(tmp_path / "packed")).predict([file]).iloc[0]
    np.testing.assert_allclose([answer[name] for name in folders.FINDINGS], expected, atol=1e-6)
    assert "images must be whole numbers" in refused.stdout  # a path in a request is not opened
