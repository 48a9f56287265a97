"""SIGTERM and SIGINT: stop at a safe point, save, exit with code 75.

Standard library only: the command line installs the handlers before imports that take seconds.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75


class Interrupted(SystemExit):
    """The process was asked to stop. Its progress is saved; the same command resumes.

    A SystemExit, so that the exit code is right even where it is not caught, such as during the first imports.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


_stop = threading.Event()
_deferrals = 0


def install() -> None:
    """Handles SIGTERM and SIGINT from now on."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def ignore() -> None:
    """Ignores SIGTERM and SIGINT from now on, so that a process whose work is done cannot be killed while Python shuts down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    again = _stop.is_set()
    # torchrun forwards a signal that the terminal has sent to its processes already, and signals them once more when the first has
    # ended. From anyone else, a second signal means that the user will not wait for a checkpoint.
    if again and "TORCHELASTIC_RUN_ID" in os.environ:
        return
    _stop.set()
    if again or not _deferrals:
        raise Interrupted


@contextmanager
def deferred() -> Iterator[None]:
    """Within this block the first signal only sets the flag that `requested` and `check` read."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


def requested() -> bool:
    """Whether a signal has arrived."""
    return _stop.is_set()


def check() -> None:
    """Stops if a signal has arrived. Call it when everything is saved.

    Raises:
        Interrupted: a signal has arrived.
    """
    if requested():
        raise Interrupted
