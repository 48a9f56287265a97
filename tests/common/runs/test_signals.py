import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from components.common.runs import signals


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Installs the handlers and restores the previous ones afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals._stop.clear()
    signals.install()
    yield
    signals._stop.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises(number: signal.Signals) -> None:
    with pytest.raises(signals.Interrupted):
        os.kill(os.getpid(), number)


def test_deferred_waits_for_check() -> None:
    with signals.deferred():
        signals.check()  # no signal yet
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested()
        with pytest.raises(signals.Interrupted):
            signals.check()


def test_the_second_signal_does_not_wait() -> None:
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_torchrun_signals_twice_and_is_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    with signals.deferred():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(signals.Interrupted):
        signals.check()


def test_deferrals_nest() -> None:
    with signals.deferred():
        with signals.deferred():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # still deferred
    with pytest.raises(signals.Interrupted):
        signals.check()


def test_a_deferral_ends_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), signals.deferred():
        _ = 1 / 0
    with pytest.raises(signals.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_except_exception_does_not_catch_a_signal() -> None:
    assert not issubclass(signals.Interrupted, Exception)


def run(code: str) -> subprocess.CompletedProcess[str]:
    start = "import os, signal; from components.common.runs import signals; signals.install()\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)


def test_an_uncaught_signal_exits_with_its_code_and_no_traceback() -> None:
    done = run("os.kill(os.getpid(), signal.SIGTERM)")
    assert (done.returncode, done.stderr) == (75, "")


def test_signals_are_ignored_after_the_work_is_done() -> None:
    done = run("signals.ignore(); os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr) == (0, "")
