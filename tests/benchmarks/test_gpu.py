"""The commands that measure on a GPU, tried out in toy sizes on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_parts import PARTS

ROOT = Path(__file__).parents[2]
ON_CPU = {"tests", "synchronisations", "compile"}  # parts that have nothing to say without a GPU


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *arguments], env=environment, text=True, capture_output=True, cwd=ROOT)


@pytest.mark.slow
def test_every_part_prints_a_table_or_needs_a_gpu() -> None:
    done = call("benchmarks.gpu", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stdout
    parts = dict(part.split("\n", 1) for part in done.stdout.split("### ")[1:])
    assert list(parts) == list(PARTS)
    assert {name for name, text in parts.items() if "needs a GPU" in text} == ON_CPU
    for name in parts.keys() - ON_CPU:
        lines = [line for line in parts[name].splitlines() if line.startswith("|")]
        assert len(lines) > 2, parts[name]
        assert len({line.count("|") for line in lines}) == 1, parts[name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_part_that_fails_is_one_line_and_the_next_goes_on(tmp_path: Path) -> None:
    """Without a GPU, a part that asks for one fails."""
    done = call("benchmarks.gpu", "--parts", "environment", "environment")
    assert done.returncode == 1
    assert done.stdout.count("environment failed: UserError: device: a GPU is asked for") == 2


@pytest.mark.slow
def test_the_counts_of_a_step() -> None:
    done = call("benchmarks.counts", "--arch", "resnet18", "--size", "32", "--batch", "32")
    assert done.returncode == 0, done.stderr
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in done.stdout.splitlines() if line.startswith("| ")
    }
    assert rows["synchronisations"] == ["22", "1", "1", "1", "1"]
    assert all(float(share) <= 1.02 for name, (*_, share) in rows.items() if name.endswith("2 x 8 processes"))
