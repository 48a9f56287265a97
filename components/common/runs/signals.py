"""SIGTERM and SIGINT: stop at a safe point, save, exit with 75.

Standard library only: the command line installs the handlers before the imports that take seconds.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75


class Interrupted(SystemExit):
    """The process was asked to stop. What was done so far is saved; the same command continues.

    A SystemExit, so that the exit code is right even where nobody catches it, such as in the first imports.
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
    """Ignores SIGTERM and SIGINT from now on: all is done, and Python, as it ends, would let itself be killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    # Whoever signals twice does not want to wait for a checkpoint. torchrun, though, passes on what it gets, which a terminal has
    # sent to everyone already, and signals all processes once more when the first has ended; it kills them after 30 seconds.
    again = _stop.is_set()
    if again and "TORCHELASTIC_RUN_ID" in os.environ:
        return
    impatient = again
    _stop.set()
    if impatient or not _deferrals:
        raise Interrupted


@contextmanager
def deferred() -> Iterator[None]:
    """Within this block a first signal only sets the flag that `check` looks at."""
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1


def requested() -> bool:
    """Whether a signal has arrived: time to save."""
    return _stop.is_set()


def check() -> None:
    """Raises Interrupted if a signal has arrived. Call it where everything is saved.

    Raises:
        Interrupted: a signal has arrived.
    """
    if requested():
        raise Interrupted
