"""Registration of three models side by side on a server with a login: few requests, and few lines of log."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from components.params import Params
from components.register import run as register
from tests import ROOT, mlflow_server
from tests.mlflow_server import LOGIN
from tests.register import folders

pytestmark = pytest.mark.services


def test_three_registrations_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in LOGIN.items():
        monkeypatch.setenv(variable, value)
    with mlflow_server.serve(tmp_path / "server", login=True) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        inputs = {}
        for seed in range(4):
            model = folders.write_model(tmp_path / f"model{seed}", seed, folders.targets_of(seed))
            inputs[seed] = ["--model", model, "--evaluation", folders.write_evaluation(tmp_path / f"evaluation{seed}", model)]
        processes = []
        for seed in range(3):
            out = ["--out", str(tmp_path / f"out{seed}"), "--set", f"register.name=cxr-{seed}", "--set", "register.min_auroc=0"]
            command = [sys.executable, "-m", "components", "register", *inputs[seed], *out]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        for process in processes:
            err = process.communicate(timeout=600)[1]
            assert process.returncode == 0, err
            assert len(err.splitlines()) == 2, f"no line per file: {err}"

        counts = _count(monkeypatch)
        folders.skip_onnx(monkeypatch)
        params = Params.model_validate({"register": {"name": "cxr-3", "min_auroc": 0}})
        model, evaluation = inputs[3][1::2]
        register.run(model=model, evaluation=evaluation, out=str(tmp_path / "out3"), **params.arguments("register"))
        files = len([path for path in (tmp_path / "out3" / "model").rglob("*") if path.is_file()])
        assert (files, counts["PUT artifacts"]) == (10, 13), "test_predictions, report and registration are the others"
        assert counts["GET artifacts"] == 0, "a model that was packed here is not downloaded again"
        assert sum(counts.values()) <= 45, sorted(counts.items())

        mlflow.set_tracking_uri(server.address)
        assert len(mlflow.pyfunc.load_model("models:/cxr-0@champion").predict(folders.images(2))) == 2
        assert len(MlflowClient(server.address).search_registered_models()) == 4


def _count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the requests from now on, by method and the path without ids."""
    counts: Counter[str] = Counter()
    send = requests.Session.send

    def counted(self: requests.Session, request: requests.PreparedRequest, **options: object) -> requests.Response:
        path = str(request.path_url).partition("?")[0].removeprefix("/api/2.0/mlflow").removeprefix("-artifacts/").removeprefix("/")
        counts[f"{request.method} {'artifacts' if path.startswith('artifacts/') else path}"] += 1
        return send(self, request, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "send", counted)
    return counts
