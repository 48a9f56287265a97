"""Steps that are tried again in their pod, as real processes: `python -m components.retry sh -ec ...`, as Kubeflow starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components import retry
from tests import ROOT, mlflow_server

STEP = """
import os, pathlib, sys
notes = pathlib.Path(sys.argv[1])
codes = sys.argv[2].split(",")
attempt = len(list(notes.iterdir()))
(notes / str(attempt)).touch()
code = int(codes[min(attempt, len(codes) - 1)])
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""
SAVER = """
import pathlib, signal, sys, time
from components.common.runs import signals
signals.install()
notes = pathlib.Path(sys.argv[1])
attempt = len(list(notes.iterdir()))
(notes / str(attempt)).touch()
if attempt == 0:
    with signals.deferred():
        while not signals.requested():
            time.sleep(0.05)
        time.sleep(0.5)
        (notes / "saved").touch()
    signals.check()
"""
QUICK = "import sys; from components import retry; retry.WAIT_SECONDS = {wait}; sys.exit(retry.main(sys.argv[1:]))"


def start(notes: Path, code: str, *arguments: str, retries: int = 0, wait: float = 0, pause: float = 0) -> subprocess.Popen[str]:
    notes.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), retry.RETRIES_VARIABLE: str(retries), retry.PAUSE_VARIABLE: str(pause)}
    shell = ["sh", "-ec", '"$0" -c "$@"\n', sys.executable, code, str(notes), *arguments]  # as in the components of kfp: no exec
    command = [sys.executable, "-c", QUICK.format(wait=wait), *shell]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("codes", "retries", "ends", "attempts"),
    [
        ("0", 2, 0, 1),
        ("2", 2, 2, 1),
        ("1,0", 0, 1, 1),
        ("1,0", 1, 0, 2),
        ("1,1,0", 1, 1, 2),
        ("75,75,75,0", 0, 0, 4),
        ("75,2", 0, 2, 2),
        ("75,1,75,0", 1, 0, 4),
        ("-9,0", 1, 0, 2),
        ("-9", 1, 128 + 9, 2),
        ("1,2", 5, 2, 2),
    ],
)
def test_attempts(tmp_path: Path, codes: str, retries: int, ends: int, attempts: int) -> None:
    process = start(tmp_path / "notes", STEP, codes, retries=retries)
    _, said = process.communicate()
    assert process.returncode == ends, said
    assert len(list((tmp_path / "notes").iterdir())) == attempts
    assert said.count("the next one begins") == attempts - 1


def test_what_is_not_available_for_long_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([75, 75, 75, 75, 75])
    clock = iter(range(0, 100_000, 150))
    monkeypatch.setattr(retry.Attempts, "_attempt", lambda self: next(codes))
    monkeypatch.setattr(retry.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(retry.signal, "signal", lambda *_: None)
    monkeypatch.setattr(retry, "WAIT_SECONDS", 0)
    assert retry.Attempts(["x"], 0, 0).run() == 75
    assert list(codes), "600 s are over before the last attempt"


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_signal_reaches_the_step_which_saves_and_resumes(tmp_path: Path) -> None:
    """The shell between dies of the signal; the next attempt begins only after the step has saved."""
    process = start(tmp_path / "notes", SAVER)
    wait_for(tmp_path / "notes" / "0")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["0", "2", "saved"], "one after the other"


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    process = start(tmp_path / "notes", SAVER)
    wait_for(tmp_path / "notes" / "0")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 75, said
    assert (tmp_path / "notes" / "saved").exists()


def test_a_signal_between_attempts_ends_it(tmp_path: Path) -> None:
    process = start(tmp_path / "notes", STEP, "1", retries=1, pause=60)
    assert process.stderr
    assert "the next one begins in 60 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1


BEGIN = """
import os, sys
from pipelines.kfp_components import begin
begin.python_func(name="training", raw=sys.argv[1], start="", root=sys.argv[2], partitions=1, data_version="")
"""


@pytest.mark.services
def test_a_step_waits_for_mlflow(tmp_path: Path) -> None:
    """The server is away when the step begins, and comes back."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dcm").write_bytes(b"a")
    (tmp_path / "server").mkdir()
    folder = tmp_path / "server"
    options = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    server = mlflow_server.Server(folder, options, {})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": server.address, "KFP_RUN_ID": "run"}
    command = [sys.executable, "-c", QUICK.format(wait=1), sys.executable, "-c", BEGIN, str(tmp_path / "raw"), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = ""
    while "the next one begins" not in said:
        said = process.stderr.readline()
        assert said, "the step gave up"
    try:
        server.start()
        _, rest = process.communicate()
    finally:
        server.kill()
    assert process.returncode == 0, rest
