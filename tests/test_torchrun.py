import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = [sys.executable, "-m", "components.torchrun", "--standalone", "--nproc-per-node=2", "--no-python", "bash", "-c"]
WAIT = "trap 'exit 75' TERM; touch $RANK.ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize(
    ("each", "code"),
    [
        ("exit 75", 75),
        pytest.param("[ $RANK = 1 ] && exit 2; sleep 60", 2, marks=pytest.mark.slow),
        pytest.param("[ $RANK = 1 ] && exit 3; sleep 60", 1, marks=pytest.mark.slow),
        pytest.param("[ $RANK = 1 ] && kill -KILL $BASHPID; sleep 60", 1, marks=pytest.mark.slow),
        pytest.param("exit 0", 0, marks=pytest.mark.slow),
    ],
)
def test_exit_code_is_that_of_the_processes(each: str, code: int) -> None:
    done = subprocess.run([*START, each], text=True, capture_output=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_reaches_the_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([*START, WAIT], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as launcher:
        while launcher.poll() is None and len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75
