"""`dvc repro`, `dvc exp run` and `dvc metrics diff` in a fresh clone, on a tiny cohort."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tests.test_end_to_end import PARAMS

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with a tiny cohort in data/, matching parameters and an MLflow database of its own."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "config", "user.email", "test@localhost"], cwd=folder, check=True)
    subprocess.run(["git", "config", "user.name", "test"], cwd=folder, check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in PARAMS.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.lock").unlink(missing_ok=True)
    call(folder, sys.executable, "-m", "components", "simulate", "--out", "data")
    call(folder, "dvc", "add", "--quiet", "data")
    subprocess.run(["git", "commit", "--quiet", "--all", "--message", "tiny"], cwd=folder, check=True)
    return folder


def call(folder: Path, *command: str) -> str:
    """Runs a command as in an activated environment; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_repro_runs_once_and_experiments_rerun_later_stages(clone: Path) -> None:
    assert "Running stage 'evaluate'" in call(clone, "dvc", "repro")
    assert "Data and pipelines are up to date" in call(clone, "dvc", "repro")
    assert "up to date" in call(clone, "dvc", "status", "dvc.yaml", "data.dvc")
    subprocess.run(["git", "add", "dvc.lock", "artifacts"], cwd=clone, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "reference"], cwd=clone, check=True)
    tracked = subprocess.run(["git", "ls-files", "artifacts"], cwd=clone, text=True, capture_output=True, check=True).stdout.split()
    assert tracked == ["artifacts/evaluation/metrics.json"]

    printed = call(clone, "dvc", "exp", "run", "-S", "classify.epochs=2")

    assert "Stage 'pretrain' didn't change, skipping" in printed
    assert "Running stage 'classify'" in printed
    changes = json.loads(call(clone, "dvc", "metrics", "diff", "--json"))["artifacts/evaluation/metrics.json"]
    assert "classify_val_auroc_macro" in changes
    call(clone, "dvc", "plots", "show")
    page = (clone / "dvc_plots" / "index.html").read_text()
    assert all(title in page for title in ("ROC", "Precision and recall", "Pretraining loss", "Macro AUROC on the validation split"))


def test_asks_for_an_activated_environment(clone: Path) -> None:
    """`.venv/bin/dvc repro` runs `python3` from the PATH, which lacks the packages."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(clone)}
    dvc = str(Path(sys.executable).with_name("dvc"))
    done = subprocess.run([dvc, "repro", "preprocess"], cwd=clone, env=environment, text=True, capture_output=True)
    assert done.returncode != 0
    assert "lacks the packages of this project; run `make .venv` and `. .venv/bin/activate`" in done.stdout + done.stderr
