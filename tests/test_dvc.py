"""`dvc repro`, `dvc exp run` and `dvc metrics diff` in a fresh clone, and the study of DVC, on a tiny cohort."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from components.evaluate.run import study as make_page
from components.heads import HEADS
from components.params import load
from pipelines.kfp_components import model as run_model
from pipelines.study_plan import StudyPlan
from tests import ROOT
from tests.pipelines.conftest import PARAMS as TINY
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
    done = subprocess.run(command, cwd=folder, env=activated(), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def activated() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


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


STUDY = {
    "arms": ["base", "moco", "ifa"],
    "base_epochs": 2,
    "fractions": [1.0],
    "positive_rates": [0.3],
    "imbalanced": "Effusion",
    "seeds": [0],
}
STUDY_COMMAND = ("make", "study")


def test_a_study_that_is_stopped_twice_gives_the_page_of_one_that_is_not(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkout without data: Ctrl-C while a base is pretrained, kill -9 while a cell is trained.

    The other study is made of the models of Kubeflow's plan.
    """
    params = yaml.safe_load((clone / "study/params.yaml").read_text())
    for section in params.keys() & TINY.keys():
        params[section] |= TINY[section]
    params["study"] |= STUDY
    (clone / "study/params.yaml").write_text(yaml.safe_dump(params))
    shutil.rmtree(clone / "data")
    (clone / ".venv").mkdir()
    (clone / ".venv/.complete").touch()  # PATH has the environment of the tests

    stop(clone, "bases/0.partial/*/checkpoints/*.pt", signal.SIGINT)
    assert list(clone.glob("artifacts/study/bases/0.partial/*/checkpoints/*.pt"))
    stop(clone, "scarcity/1.0/moco/0.partial/*/checkpoints/*.pt", signal.SIGKILL)
    call(clone, *STUDY_COMMAND)
    assert json.loads((clone / "artifacts/study/bases/0/run.json").read_text())["resumed"]
    assert "up to date" in call(clone, *STUDY_COMMAND)

    monkeypatch.chdir(clone)
    given = load("study/params.yaml")
    plan = StudyPlan("artifacts/shards", ("artifacts/shards",), "planned", "planned", given, tuple(HEADS))
    for model in (model for phase in plan.phases() for model in phase):
        run_model.python_func(item=json.dumps(model), runtime=json.dumps(given.runtime.values()), processes=1)
    make_page(cells="planned", out="planned/page", **given.arguments("evaluate study"))
    for name in ("study.html", "study.md", "metrics.json"):
        assert (clone / "planned/page" / name).read_bytes() == (clone / "artifacts/study/page" / name).read_bytes()


def stop(clone: Path, reached: str, how: signal.Signals) -> None:
    """Runs the study until a file is there, and sends a signal to all its processes."""
    process = subprocess.Popen(STUDY_COMMAND, cwd=clone, env=activated(), start_new_session=True)
    while not list((clone / "artifacts/study").glob(reached)):
        assert process.poll() is None, "the study ended before"
        time.sleep(0.01)
    os.killpg(process.pid, how)
    assert process.wait() != 0
