"""Runs the real command line in one process, or in several by torchrun."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import yaml

from components.common.formats.history import VOLATILE
from components.params import Params


def command(shards: str, out: Path, params: Params, ranks: int = 1, *settings: str, stage: str = "pretrain") -> list[str]:
    """Returns the command of a stage that trains; writes `params` next to `out`."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    start = ["-m", "components.torchrun", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, *start, "-m", "components", stage, "--shards", shards, "--out", str(out), "--params", str(file), *sets]


def environment() -> dict[str, str]:
    """Returns the environment of a command, limited to one thread for reproducible results."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def call(arguments: list[str], code: int = 0) -> str:
    """Runs a command to its end and returns its log."""
    done = subprocess.run(arguments, env=environment(), text=True, capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


def history(folder: Path) -> list[dict[str, float]]:
    """Reads history.csv without the columns that differ from run to run."""
    with (folder / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if name not in VOLATILE} for row in csv.DictReader(file)]
