"""`mlflow models serve` answers a DICOM file posted by curl."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest

from components.common.runs import tracking  # noqa: F401 - quiets MLflow
from components.params import Params
from components.register.packing import pack
from components.simulate import run as simulate
from tests.register import folders

pytestmark = pytest.mark.services


def test_a_dicom_file_posted_by_curl_is_scored(tmp_path: Path) -> None:
    model = Path(folders.write_model(tmp_path / "model", seed=1, targets=folders.targets_of(1)))
    pack(model / "model.safetensors", json.loads((model / "model.json").read_text()), "# A card\n", tmp_path / "packed")
    simulate.run(out=str(tmp_path / "raw"), **Params.model_validate({"simulate": {"patients": 1, "size": 80}}).arguments("simulate"))
    file = min((tmp_path / "raw").rglob("*.dcm"))
    request = {"dataframe_split": {"columns": ["dicom"], "data": [[base64.b64encode(file.read_bytes()).decode()]]}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(tmp_path / "packed"), "--env-manager", "local", "-p", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(server, port, tmp_path / "log")
        curl = ["curl", "--silent", "--header", "Content-Type: application/json", "--data", f"@{tmp_path / 'request.json'}"]
        done = subprocess.run([*curl, f"http://127.0.0.1:{port}/invocations"], capture_output=True, text=True, check=True)
        (answer,) = json.loads(done.stdout)["predictions"]
        (tmp_path / "request.json").write_text(json.dumps({"inputs": [str(file)]}))
        refused = subprocess.run([*curl, f"http://127.0.0.1:{port}/invocations"], capture_output=True, text=True, check=True)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    expected = mlflow.pyfunc.load_model(str(tmp_path / "packed")).predict([file]).iloc[0]
    np.testing.assert_allclose([answer[name] for name in folders.FINDINGS], expected, atol=1e-6)
    assert "images must be whole numbers" in refused.stdout  # a path in a request is not opened


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    for _ in range(900):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])
