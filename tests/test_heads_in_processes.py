"""Every head computes in two processes what it computes in one: the same losses, scores and gradients, from uneven shares of a batch."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.common.errors import UserError
from components.common.runs.shards import open_shards
from components.common.training import processes
from components.common.training.reader import Reader
from components.invert.gan_training import GanTraining
from components.params import Params
from tests.detect.conftest import make_boxed  # noqa: F401
from tests.invert.test_run import SMALL
from tests.pretrain.commands import call, command, history
from tests.pretrain.test_stops import stop

DETECT = {"arch": "resnet18", "channels": 64, "batch_size": 7}
CASES: dict[str, dict[str, Any]] = {
    "classify": {"classify": {"arch": "resnet18", "batch_size": 7, "loss": "focal"}},
    "detect": {"detect": DETECT},
    "detect fasterrcnn": {"detect": {**DETECT, "detector": "fasterrcnn"}},
    "invert": {"invert": {**SMALL, "batch_size": 7, "perceptual": "scratch"}},
    "invert gan": {"invert": SMALL},
}
TOLERANCE = {"detect fasterrcnn": "0.02"}
"""Of gradients, relative. Rounding changes the order of proposals with nearly the same score, of which Faster R-CNN learns from some."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, make_boxed: Callable[..., str]) -> None:  # noqa: F811
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.head_ranks"]
    given = {"SHARDS": make_boxed(images=40), "PARAMS": Params.model_validate(CASES[name]).model_dump_json(by_alias=True)}
    given["TOLERANCE"] = TOLERANCE.get(name, "0.001")
    case = name if name == "invert gan" else name.split()[0]
    done = subprocess.run([*start, case], env={**os.environ, "OMP_NUM_THREADS": "1", **given}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "knn"])
def test_protocols_on_frozen_features_agree(mode: str, make_boxed: Callable[..., str], tmp_path: Path) -> None:  # noqa: F811
    params, shards = Params.model_validate({"classify": {"arch": "resnet18", "batch_size": 7, "mode": mode}}), make_boxed(images=40)
    for count in (1, 2):
        call(command(shards, tmp_path / str(count), params, count, stage="classify"))
    one, two = (pd.read_parquet(tmp_path / str(count) / "predictions.parquet") for count in (1, 2))
    scores = [name for name in one if name.startswith("score_")]
    np.testing.assert_allclose(two[scores], one[scores], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify", "detect", "invert"])
def test_a_run_stopped_in_two_processes_continues_in_one(name: str, make_boxed: Callable[..., str], tmp_path: Path) -> None:  # noqa: F811
    given = {section: {**values, "epochs": 3, "batch_size": 8} for section, values in CASES[name].items()}
    params = Params.model_validate({**given, "runtime": {"checkpoint_minutes": 0}})
    shards, whole, out = make_boxed(images=80), tmp_path / "whole", tmp_path / "stopped"
    call(command(shards, whole, params, 2, stage=name))
    assert stop(command(shards, out, params, 2, stage=name), out, 2, 0.0, signal.SIGTERM) == 75
    log = call(command(shards, out, params, stage=name))
    assert "resumes with ranks 1 instead of 2; the result may differ in the last bits" in log
    assert "resumes at step" in log
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    losses = [[row["loss"] for row in history(folder)] for folder in (out, whole)]
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_a_batch_too_small_for_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch, make_boxed: Callable[..., str]) -> None:  # noqa: F811
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    with pytest.raises(UserError, match=r"^classify\.batch_size: 3 images on 4 processes; raise it"):
        processes.check_batch("classify.batch_size", 3)
    processes.check_batch("classify.batch_size", 4)
    params = Params.model_validate({"invert": SMALL}).invert
    with pytest.raises(UserError, match=r"^invert\.gan_batch_size: 8 is not a multiple of 4 times 4 processes; change it"):
        GanTraining(params, Reader(open_shards(make_boxed()), "train", rank=0, ranks=1))
