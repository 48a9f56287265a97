"""Every training step on tensors that claim to be on a GPU: no mix of devices, and few waits of the host for the device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.preprocess import run as preprocess
from components.simulate import run as simulate
from tests.fake_steps import cases
from tests.heads import PARAMS

MOST = {
    "pretrain": 1,  # the numbers of the step before, read in one copy
    "classify": 1,  # as in pretrain
    "invert": 2,  # as in pretrain; the first step also copies the taps of a filter, which are kept
    "detect retinanet": 220,  # torchvision matches boxes of one image after the other, by masks: 218 with the 8 images of this test
    "detect fasterrcnn": 150,  # as in RetinaNet, 149
}
"""Synchronisations a step, by the begin of the case's name."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, int]], str]]:
    """Returns the synchronisations of each step, by place, and the error by case."""
    folder = tmp_path_factory.mktemp("fake")
    raw, shards = str(folder / "raw"), str(folder / "shards")
    simulate.run(out=raw, **PARAMS.arguments("simulate"))
    preprocess.run(raw=raw, out=shards, **PARAMS.arguments("preprocess"))
    command = [sys.executable, "-m", "tests.fake_steps", shards]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    return {name: (steps, error) for name, steps, error in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_a_step_mixes_no_devices_and_seldom_waits(found: dict[str, tuple[list[dict[str, int]], str]], case: str) -> None:
    steps, error = found[case]
    assert not error, error
    assert steps
    for places in steps:
        assert sum(places.values()) <= next(most for name, most in MOST.items() if case.startswith(name)), places
