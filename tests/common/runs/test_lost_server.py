"""A real MLflow server that is killed while a stage trains."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from components.common.runs.storage import digest_file
from components.common.runs.tracking import UNSENT
from components.params import Params
from tests import ROOT
from tests.conftest import MakeShards
from tests.mlflow_server import Server, serve

pytestmark = pytest.mark.services
EPOCHS = 5


@pytest.fixture
def params(tiny: Params, tmp_path: Path) -> Path:
    content = tiny.model_dump(mode="json", by_alias=True)
    content["pretrain"]["epochs"] = EPOCHS
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(stage: str, shards: str, out: Path, params: Path, server: Server) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "components", stage, "--shards", shards, "--out", str(out), "--params", str(params)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.address, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_an_epoch(process: "subprocess.Popen[str]", out: Path) -> None:
    until = time.monotonic() + 600
    while not list(out.parent.glob(f"{out.name}.partial/*/history.csv")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def check_complete(server: Server, out: Path) -> None:
    """Checks that MLflow holds every number of history.csv exactly once, and metrics.json."""
    client, run_id = MlflowClient(server.address), json.loads((out / "run.json").read_text())["mlflow_run_id"]
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert len(rows) == EPOCHS
    for name in set(rows[0]) - {"epoch"}:
        logged = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name) if point.step)
        known = [(int(row["epoch"]), float(row[name])) for row in rows if row[name] not in ("", "nan")]
        assert logged == [(epoch, pytest.approx(value)) for epoch, value in known], name
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run_id) if item.path == "history.csv"] == ["history.csv"]


def test_training_continues_and_no_metric_is_lost(make_shards: MakeShards, params: Path, tmp_path: Path) -> None:
    shards = make_shards()
    with serve(tmp_path / "server") as server:
        undisturbed = start("pretrain", shards, tmp_path / "undisturbed", params, server)
        assert undisturbed.wait(900) == 0, undisturbed.communicate()[1]

        for back in ("while it trains", "afterwards"):
            out = tmp_path / back.replace(" ", "_") / "backbone"
            disturbed = start("pretrain", shards, out, params, server)
            wait_for_an_epoch(disturbed, out)
            server.kill()
            if back == "while it trains":
                server.start()
            err = disturbed.communicate(timeout=900)[1]
            assert disturbed.returncode == 0, err
            assert err.count("is lost") <= 1  # none if the server was back before the next request
            assert digest_file(out / "backbone.safetensors") == digest_file(tmp_path / "undisturbed" / "backbone.safetensors")
            if back == "afterwards":
                assert "could not be completed" in err
                server.start()
            if "could not be completed" in err:  # on a slow machine the server may come back too late even if training still runs
                following = start("classify", shards, out.with_name("classify"), params, server)
                assert following.wait(900) == 0, following.communicate()[1]
            check_complete(server, out)
            assert not list(out.parent.glob(f"*/*{UNSENT}"))
