"""Pretraining in several processes by torchrun, with the real command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from components.params import Params
from components.pretrain import run as pretrain
from tests.conftest import MakeShards
from tests.pretrain.commands import call, command, history


def assert_alike(one: Path, other: Path, tolerance: float, but: tuple[str, ...] = ()) -> None:
    for ours, theirs in zip(history(one), history(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - set(but):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=tolerance, nan_ok=True), name


@pytest.mark.slow
def test_two_processes_do_what_one_does(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    frozen = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"batch_norm": "frozen"})})
    pretrain.run(shards=[shards], out=str(tmp_path / "one"), **frozen.arguments("pretrain"))
    said = call(command(shards, tmp_path / "two", frozen, 2))

    assert_alike(tmp_path / "one", tmp_path / "two", 1e-4)
    one, two = (load_file(tmp_path / name / "backbone.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        np.testing.assert_allclose(weights, two[name], atol=1e-4, err_msg=name)
    # Only one process writes files and logs.
    assert len(re.findall("pretrain: done", said)) == 1
    assert len(re.findall("epoch 1/2", said)) == 1
    assert not (tmp_path / "two.partial").exists()
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]  # only sums are in a different order


@pytest.mark.slow
def test_groups_are_the_same_wherever_they_are_computed(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Shuffling batch norm uses the same groups, hence gives the same losses, in one process, two processes or accumulated parts."""
    shards = make_shards(images=200)
    settings = ("pretrain.batch_size=16", "pretrain.shuffle_groups=2", "pretrain.epochs=1", "pretrain.lr=0.00001")
    call(command(shards, tmp_path / "one", tiny, 1, *settings))
    call(command(shards, tmp_path / "two", tiny, 2, *settings))
    call(command(shards, tmp_path / "parts", tiny, 1, *settings, "pretrain.accumulate=2"))

    assert_alike(tmp_path / "one", tmp_path / "parts", 1e-3)
    assert_alike(tmp_path / "one", tmp_path / "two", 1e-3)


@pytest.mark.slow
def test_errors_are_logged_once(tiny: Params, tmp_path: Path) -> None:
    said = call(command(str(tmp_path / "nothing"), tmp_path / "out", tiny, 2), code=2)
    assert len(re.findall("^pretrain: .*nothing/manifest.json: not found", said, re.MULTILINE)) == 1
    assert "Traceback" not in said
