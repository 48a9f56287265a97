"""Child processes: those of the pool, and one for a single call that may crash or hang, which must not end the stage."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")
"""Child processes inherit nothing: neither connections to a server nor the parent's threads and locks."""
MAX_SECONDS = 240.0  # time limit for one file; the largest one that is decoded (50 megapixels of JPEG 2000) takes about 3


class NoAnswer(Exception):  # noqa: N818 - what happened to the other process
    """The process ended, by a `signal` if it is not 0, or did not answer within MAX_SECONDS if it is None."""

    def __init__(self, signal: int | None):
        super().__init__(signal)
        self.signal = signal


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a module-level function in a child process; raises what it raises, or NoAnswer."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_answer, args=(sender, function, args, kwargs))
    process.start()
    sender.close()
    with receiver:
        if not receiver.poll(MAX_SECONDS):
            process.kill()
            process.join()
            raise NoAnswer(None)
        try:
            result, error = receiver.recv()
        except EOFError:
            process.join()
            raise NoAnswer(-(process.exitcode or 0)) from None
    process.join()
    if error:
        raise error
    answer: T = result
    return answer


def begin_process() -> None:
    """Must be called first in every child process: only the parent handles signals, and no child outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def with_traceback(error: Exception) -> Exception:
    """Adds the traceback as a note, since tracebacks are lost between processes."""
    error.add_note("".join(traceback.format_exception(error)))
    return error


def _answer(sender: Connection, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    begin_process()
    with suppress(BrokenPipeError):
        try:
            sender.send((function(*args, **kwargs), None))
        except Exception as error:
            sender.send((None, with_traceback(error)))


def _die_with_parent() -> None:
    """Ends this process with its parent, which cannot do so itself if it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
