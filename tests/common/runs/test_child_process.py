"""Calls in a child process that crash, hang or ask for too much memory."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from components.common.runs import child_process
from components.common.runs.child_process import Child, NoAnswer, limited_memory
from tests import ROOT

TOO_MUCH = child_process.MAX_BYTES + 2**30
# Without `if __name__ == "__main__"`, as people write scripts.
SCRIPT = """
import os, time
from components.common.runs.child_process import Child
child = Child()
print(child.call(os.getpid), flush=True)
child.call(time.sleep, 60)
"""


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


def test_calls_are_made_in_one_other_process(child: Child) -> None:
    pids = {child.call(os.getpid), child.call(os.getpid)}
    assert len(pids) == 1 and os.getpid() not in pids
    assert child.call(int, "ff", base=16) == 255


def test_exceptions_come_back(child: Child) -> None:
    with pytest.raises(ValueError, match="invalid literal") as raised:
        child.call(int, "x")
    assert "Traceback" in raised.value.__notes__[0]


def test_after_a_crash_the_next_call_starts_a_new_process(child: Child) -> None:
    first = child.call(os.getpid)
    with pytest.raises(NoAnswer) as crashed:
        child.call(os.abort)
    assert crashed.value.signal == signal.SIGABRT
    assert child.call(os.getpid) != first


def test_a_process_that_hangs_is_killed(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = child.call(os.getpid)
    monkeypatch.setattr(child_process, "MAX_SECONDS", 0.2)
    with pytest.raises(NoAnswer) as hung:
        child.call(time.sleep, 60)
    assert hung.value.signal is None and not Path(f"/proc/{stuck}").exists()


def test_an_interrupted_call_leaves_no_answer_to_the_next_one(child: Child) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    child.call(len, "")  # the process has started
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            child.call(time.sleep, 0.3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert child.call(abs, -3) == 3


def test_a_fork_makes_calls_in_a_process_of_its_own(child: Child) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    mine = child.call(os.getpid)
    fork = os.fork()
    if not fork:
        with suppress(BaseException):
            sender.send(child.call(os.getpid))
            child.close()
        os._exit(0)
    os.waitpid(fork, 0)
    assert receiver.poll(0) and receiver.recv() != mine
    assert child.call(os.getpid) == mine


def test_memory_is_limited_in_a_child(child: Child) -> None:
    with pytest.raises(MemoryError):
        child.call(bytearray, TOO_MUCH)
    assert len(child.call(bytearray, 2**20)) == 2**20


def test_memory_is_limited_for_a_while() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(), pytest.raises(MemoryError):
        bytearray(TOO_MUCH)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_busy_child_dies_with_a_killed_parent() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdin and parent.stdout
    parent.stdin.write(SCRIPT)
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)
