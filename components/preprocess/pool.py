"""Processes parts in this process or in child processes, which import this module: it must not import MLflow (seconds)."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from components.common.errors import UserError
from components.common.runs import child_process, signals
from components.common.runs.cores import cores
from components.preprocess.part_writer import Stopped, is_done, last_files, process_part
from components.preprocess.parts import Part
from components.preprocess.rows import Context

log = logging.getLogger(__name__)

Advance = Callable[[int], object]  # moves the progress bar by a number of files

_POLL_SECONDS = 0.2
_STOP_SECONDS = 20
_GRACE_SECONDS = 60  # added to the time limit of a step, during which a process may itself wait for a child that reads a suspect file


@contextmanager
def processing(context: Context, parts: list[Part], workers: int) -> Iterator[Callable[[], None]]:
    """Processes unfinished parts, in this process or in a pool that starts at once; yields a function that waits for their end.

    It raises Interrupted after a signal (finished parts are kept), and UserError from a part, or if processes of the pool die repeatedly.
    """
    context.folder.mkdir(exist_ok=True)
    todo = [part for part in parts if not is_done(context.folder, part)]
    files = sum(part.files for part in parts)
    done = files - sum(part.files for part in todo)
    with tqdm(total=files, initial=done, desc="preprocess", unit="file", disable=None) as bar:
        if workers == 1:
            yield lambda: _process_here(context, todo, bar.update)
            return
        pool = _Pool(context, min(workers_of(workers), len(todo)), todo, bar.update)
        try:
            yield pool.finish
        finally:
            pool.close()


def workers_of(wanted: int) -> int:
    """Returns the number of processes for `runtime.workers`: 0 means one per core."""
    return wanted or cores()


def _process_here(context: Context, parts: list[Part], advance: Advance) -> None:
    with signals.deferred(), suppress(Stopped), _Watchdog() as watchdog:

        def end() -> None:
            watchdog.wait()
            advance(1)

        for part in parts:
            process_part(context, part, watchdog.begin, end, watchdog.wait)
    signals.check()


def _is_stuck(begun: float) -> bool:
    """Whether a step of a file that began at this time (monotonic clock; 0: none) takes too long."""
    return bool(begun) and time.monotonic() - begun > child_process.MAX_SECONDS + _GRACE_SECONDS


class _Watchdog:
    """Ends this process if a step of a file takes too long, since a decoder cannot be interrupted; the next run sets that file aside."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "_Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self) -> bool:
        self._begun = time.monotonic()
        return signals.requested()

    def wait(self) -> None:
        self._begun = 0.0

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            if _is_stuck(self._begun):
                log.error("preprocess: a file takes its decoder too long; run the same command again, which then sets that file aside")
                os._exit(signals.EXIT_CODE)


class _Shared:
    def __init__(self) -> None:
        self.stop = child_process.SPAWN.Event()
        self.files = child_process.SPAWN.Value("Q", 0)  # number of finished ones


class _Worker:
    """A child process that processes one part after the other."""

    def __init__(self, context: Context, shared: _Shared):
        self.connection, theirs = child_process.SPAWN.Pipe()
        self._begun = child_process.SPAWN.RawValue("d", 0.0)
        self.process = child_process.SPAWN.Process(target=_work, args=(theirs, context, shared, self._begun))
        self.process.start()
        theirs.close()  # so that the connection closes when the process dies
        self.part: Part | None = None

    def give(self, part: Part) -> None:
        self.part = part
        self.connection.send(part)

    def kill_if_stuck(self) -> None:
        """Kills the process if a step of a file takes too long; the pool then handles it like any other death."""
        if _is_stuck(self._begun.value):
            self.process.kill()

    def stop(self) -> None:
        self.connection.close()
        self.process.join(_STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Pool:
    """A pool that survives the death of a process and kills one that hangs, unlike those of the standard library.

    A thread supervises the processes, so that they work while the main thread imports MLflow.
    """

    def __init__(self, context: Context, workers: int, parts: list[Part], advance: Advance):
        self._context, self._advance = context, advance
        self._shared = _Shared()
        self._shown = 0
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._workers = [_Worker(context, self._shared) for _ in range(workers)]
        self._thread = threading.Thread(target=self._supervise, args=(parts,), name="pool")
        self._thread.start()

    def finish(self) -> None:
        """Waits until all parts are done or a signal arrives; raises the error of a part."""
        with signals.deferred():
            self._thread.join()
        if self._error:
            raise self._error
        signals.check()

    def close(self) -> None:
        """Ends the processes; those at work leave their part unfinished."""
        self._closing.set()
        self._thread.join()

    def _supervise(self, parts: list[Part]) -> None:
        try:
            self._process(parts)
        except BaseException as error:  # raised again by `finish`
            self._error = error

    def _process(self, parts: list[Part]) -> None:
        queue = deque(sorted(parts, key=lambda part: -part.files))  # the largest first, so that all processes finish at about the same time
        try:
            while (queue or any(worker.part for worker in self._workers)) and not (signals.requested() or self._closing.is_set()):
                for worker in self._workers:
                    if queue and not worker.part:
                        worker.give(queue.popleft())
                for connection in wait([worker.connection for worker in self._workers if worker.part], _POLL_SECONDS):
                    self._receive(next(worker for worker in self._workers if worker.connection is connection))
                for worker in self._workers:
                    worker.kill_if_stuck()
                done = self._shared.files.value
                self._advance(done - self._shown)
                self._shown = done
        finally:
            self._shared.stop.set()
            for worker in self._workers:
                worker.stop()

    def _receive(self, worker: _Worker) -> None:
        try:
            error = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker)
            return
        worker.part = None
        if error:
            raise error

    def _replace(self, dead: _Worker) -> None:
        """Lets a new process restart the part, where it reads the file that was in progress in a child process."""
        assert dead.part
        dead.stop()
        last = last_files(self._context.folder / dead.part.attempts_name)
        if not last or last.count(last[-1]) > 1:
            raise UserError("processes of the pool die repeatedly, perhaps for lack of memory; lower runtime.workers and run again")
        fresh = _Worker(self._context, self._shared)
        self._workers[self._workers.index(dead)] = fresh
        fresh.give(dead.part)


def _work(connection: Connection, context: Context, shared: _Shared, begun: Any) -> None:
    """Runs in a process of the pool; `begun` holds the start of the current step of a file (monotonic clock), 0 between steps."""
    child_process.begin_process()

    def begin() -> bool:
        begun.value = time.monotonic()
        return shared.stop.is_set()

    def wait() -> None:
        begun.value = 0.0

    def end() -> None:
        wait()
        with shared.files.get_lock():
            shared.files.value += 1

    while True:
        try:
            part = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            process_part(context, part, begin, end, wait)
            answer = None
        except Stopped:
            return
        except Exception as error:
            answer = child_process.with_traceback(error)
        with suppress(BrokenPipeError, ConnectionResetError):  # the stage has ended meanwhile, for another reason
            connection.send(answer)
