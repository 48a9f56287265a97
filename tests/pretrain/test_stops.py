"""A run stopped at any point, by SIGTERM or SIGKILL, resumes to the same result as an uninterrupted run."""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from components.common.runs.storage import digest_file
from components.params import Params
from components.pretrain import run as pretrain
from tests.conftest import MakeShards
from tests.pretrain.commands import call, command, environment, history

pytestmark = pytest.mark.slow


def stop(arguments: list[str], out: Path, step: int, pause: float, number: signal.Signals) -> int:
    """Starts a command, sends it a signal `pause` seconds after a checkpoint of `step` or later exists, and returns the exit code."""
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and max(steps(out), default=-1) < step:
            time.sleep(0.02)
        time.sleep(pause)
        process.send_signal(number)
        return process.wait(timeout=200)


def steps(out: Path) -> list[int]:
    """Returns the steps of the checkpoints."""
    return [int(path.name[:9]) for path in Path(f"{out}.partial").glob("*/checkpoints/*.pt")]


def assert_same(one: Path, other: Path) -> None:
    assert digest_file(one / "backbone.safetensors") == digest_file(other / "backbone.safetensors")
    np.testing.assert_equal(history(one), history(other))


@pytest.fixture
def params(tiny: Params) -> Params:
    """Parameters for three epochs, with the probe after each."""
    return tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"epochs": 3, "probe_epochs": 1})})


def test_a_run_stopped_and_killed_ends_with_the_same_weights(make_shards: MakeShards, params: Params, tmp_path: Path) -> None:
    shards = make_shards()
    pretrain.run(shards=[shards], out=str(tmp_path / "whole"), **params.arguments("pretrain"))

    arguments, out = command(shards, tmp_path / "stopped", params), tmp_path / "stopped"
    rng = np.random.default_rng(0)
    assert stop(arguments, out, 1, rng.uniform(0, 0.1), signal.SIGTERM) == 75
    stopped = max(steps(out))
    assert stop(arguments, out, stopped + 1, rng.uniform(0, 0.3), signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    assert stopped < max(steps(out)) <= 12
    assert f"resumes at step {max(steps(out))} of 12" in call(arguments)

    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize("settings", [(), ("pretrain.precision=bf16", "pretrain.accumulate=2"), ("pretrain.batch_norm=frozen",)])
def test_stopped_again_and_again(make_shards: MakeShards, params: Params, tmp_path: Path, settings: tuple[str, ...]) -> None:
    shards = make_shards(images=120)
    call(command(shards, tmp_path / "whole", params, 1, *settings))

    arguments, out = command(shards, tmp_path / "stopped", params, 1, *settings), tmp_path / "stopped"
    rng, attempts = np.random.default_rng(len(settings)), 0
    while not out.exists():
        attempts += 1
        step = max(steps(out), default=0) + int(rng.integers(1, 6))
        stop(arguments, out, step, rng.uniform(0, 0.5), [signal.SIGTERM, signal.SIGKILL][attempts % 2])

    assert attempts > 3
    assert_same(out, tmp_path / "whole")


def test_two_processes_stop_together(make_shards: MakeShards, params: Params, tmp_path: Path) -> None:
    shards = make_shards(images=120)
    call(command(shards, tmp_path / "whole", params, 2))

    arguments, out = command(shards, tmp_path / "stopped", params, 2), tmp_path / "stopped"
    assert stop(arguments, out, 2, 0.1, signal.SIGTERM) == 75
    stopped = max(steps(out))
    assert f"resumes at step {stopped} of " in call(arguments)

    assert_same(out, tmp_path / "whole")


def test_a_process_that_is_killed_ends_the_others(make_shards: MakeShards, params: Params, tmp_path: Path) -> None:
    shards, out = make_shards(images=120), tmp_path / "out"
    arguments = command(shards, out, params, 2)
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as launcher:
        while launcher.poll() is None and max(steps(out), default=-1) < 2:
            time.sleep(0.02)
        workers = children(launcher.pid)
        subprocess.run(["kill", "-KILL", str(workers[-1])], check=True)
        said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1
    assert "Traceback" not in said
    assert "resumes at step" in call(arguments)


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], text=True, capture_output=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def test_a_stopped_run_continues_on_another_number_of_processes_and_threads(
    make_shards: MakeShards, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = make_shards(images=120), tmp_path / "stopped"
    call(command(shards, tmp_path / "whole", params, 1, "pretrain.batch_norm=frozen"))
    assert stop(command(shards, out, params, 1, "pretrain.batch_norm=frozen"), out, 1, 0.0, signal.SIGTERM) == 75
    log = call(command(shards, out, params, 2, "pretrain.batch_norm=frozen"))
    assert "resumes with ranks 2 instead of 1; the result may differ in the last bits" in log
    assert "resumes at step" in log
    for ours, theirs in zip(history(out), history(tmp_path / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3, nan_ok=True)
