"""Child processes: those of a pool, and one that makes calls which may crash, hang or ask for any amount of memory."""

import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")
"""Child processes inherit nothing: neither connections to a server nor the parent's threads and locks."""
MAX_SECONDS = 240.0  # time limit for one file; the largest one that is decoded (50 megapixels of JPEG 2000) takes about 3
MAX_BYTES = 4 * 2**30  # memory limit for one file, beyond what the process has; the largest one takes about 1.5 GiB
_ROOT = Path(__file__).parents[3]  # of the package `components`


class NoAnswer(Exception):  # noqa: N818 - what happened to the other process
    """The process ended, by a `signal` if it is not 0, or did not answer within the time limit if it is None."""

    def __init__(self, signal: int | None):
        super().__init__(signal)
        self.signal = signal


class Child:
    """A process that makes calls for this one within a memory limit, one at a time.

    It is started by the first call, and by the next one after it died. It does not import this process's main module, so that scripts
    without `if __name__ == "__main__"` can use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._parent = 0  # process that has started it

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a module-level function, whose arguments and result are pickled; raises what it raises, or NoAnswer."""
        with self._lock:
            try:
                # A fork of this process, as servers make them, starts its own: answers to one would reach the other.
                ours = self._connection if self._parent == os.getpid() else None
                connection = ours or self._start()
                connection.send((function.__module__, function.__qualname__, args, kwargs))
                if not connection.poll(MAX_SECONDS):
                    raise NoAnswer(None)
                result, error = connection.recv()
            except (EOFError, ConnectionError):
                raise NoAnswer(-self._end()) from None
            except BaseException:  # such as Ctrl-C in a notebook
                self._end()  # or the next call would receive the answer to this one
                raise
        if error:
            raise error
        answer: T = result
        return answer

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _start(self) -> Connection:
        self._parent = os.getpid()
        self._connection, theirs = multiprocessing.Pipe()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        return self._connection

    def _end(self) -> int:
        """Returns the exit code of the process if it has ended by itself."""
        code = 0
        if self._connection and self._process:
            self._connection.close()
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1)
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None
        return code


@contextmanager
def limited_memory() -> Iterator[None]:
    """Lets this process take at most MAX_BYTES more than it has; beyond that, Python raises MemoryError, and decoders fail or crash."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    most = used + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if before[0] == resource.RLIM_INFINITY else min(most, before[0]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def begin_process() -> None:
    """Must be called first in every child process of a pool: only the parent handles signals, and no child outlives it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    _begin(lambda: wait_for([parent.sentinel]))


def with_traceback(error: Exception) -> Exception:
    """Adds the traceback as a note, since tracebacks are lost between processes."""
    error.add_note("".join(traceback.format_exception(error)))
    return error


def _begin(wait_for_parent: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def die_with_parent() -> None:
        """Ends this process with its parent, which cannot do so itself if it is killed."""
        wait_for_parent()
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def _answer(connection: Connection) -> None:
    """Runs in a `Child`."""
    closed = select.poll()
    closed.register(connection.fileno(), select.POLLHUP)
    _begin(closed.poll)
    while True:
        module, name, args, kwargs = connection.recv()
        try:
            with limited_memory():
                result = getattr(import_module(module), name)(*args, **kwargs)
            connection.send((result, None))
        except Exception as error:
            connection.send((None, with_traceback(error)))


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        _answer(Connection(int(sys.argv[1])))
