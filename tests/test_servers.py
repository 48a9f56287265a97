"""Stages against real servers: MLflow on PostgreSQL with artifacts on S3, two concurrent writers, and a restart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from tests import ROOT, mlflow_server, postgres, seaweed
from tests.common.runs.test_lost_server import check_complete, wait_for_an_epoch
from tests.mlflow_server import Server
from tests.test_end_to_end import PARAMS

pytestmark = pytest.mark.services
EPOCHS = 5


def command(folder: Path, server: Server, *arguments: str) -> "subprocess.Popen[str]":
    """Starts a stage in a folder that logs to the server."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "components", *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        err = process.communicate(timeout=900)[1]
        assert process.returncode == 0, err


def test_two_writers_and_a_restart_lose_nothing(tmp_path: Path) -> None:
    params = {**PARAMS, "pretrain": {**PARAMS["pretrain"], "epochs": EPOCHS}, "register": {"min_auroc": 0, "resamples": 100}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "s3").mkdir()
    with (
        postgres.serve("mlflow") as database,
        seaweed.serve(tmp_path / "s3") as store,
        mlflow_server.serve(tmp_path / "server", database, f"s3://{seaweed.BUCKET}/mlflow", store) as server,
    ):
        finish(command(tmp_path, server, "simulate", "--out", "data"))
        finish(command(tmp_path, server, "preprocess", "--raw", "data", "--out", "shards"))
        pretrain = ["pretrain", "--shards", "shards", "--set"]
        writers = [command(tmp_path, server, *pretrain, f"pretrain.seed={seed}", "--out", f"backbone{seed}") for seed in (0, 1)]
        wait_for_an_epoch(writers[0], tmp_path / "backbone0")
        server.kill()
        server.start()
        finish(*writers)
        # classify also sends what the writers could not send if the server came back too late for them.
        finish(command(tmp_path, server, "classify", "--shards", "shards", "--backbone", "backbone0", "--out", "classify"))
        for seed in (0, 1):
            check_complete(server, tmp_path / f"backbone{seed}")
        finish(command(tmp_path, server, "evaluate", "--predictions", "classify", "--out", "evaluation"))
        finish(command(tmp_path, server, "register", "--model", "classify", "--evaluation", "evaluation", "--out", "registration"))
        finish(command(tmp_path, server, "predict", "--model", "models:/cxr-classify@champion", "--raw", "data", "--out", "predicted"))
        _check(tmp_path, MlflowClient(server.address))


def _check(folder: Path, client: MlflowClient) -> None:
    """Checks that the report is in the store and that the registered model reproduces the test scores of classify."""
    run_id = json.loads((folder / "evaluation" / "run.json").read_text())["mlflow_run_id"]
    assert "report.html" in [item.path for item in client.list_artifacts(run_id)]
    trained, scored = (pd.read_parquet(folder / name / "predictions.parquet").set_index("image_id") for name in ("classify", "predicted"))
    columns = [name for name in trained.columns if name.startswith("score_")]
    assert len(columns)
    test = trained.query("split == 'test'")
    pd.testing.assert_frame_equal(test[columns], scored.loc[test.index, columns], atol=1e-4, rtol=0)
