"""Parts in this process or in a pool of processes.

A module of its own: each process of the pool imports it, and must not wait for MLflow.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for

from tqdm import tqdm

from components.common import interrupt
from components.common.errors import UserError
from components.preprocess.part import Context, Part, Stopped, is_done, process_part

Advance = Callable[[int], object]
"""Moves the progress bar by a number of files."""

_POLL_SECONDS = 0.2


def process_parts(context: Context, parts: list[Part]) -> None:
    """Processes what is not done yet, in this process or in a pool.

    Raises:
        Interrupted: a signal arrived; finished parts are kept.
        UserError: from a part, or a process of the pool died.
    """
    context.folder.mkdir(exist_ok=True)
    todo = [part for part in parts if not is_done(context.folder, part)]
    workers = min(context.params.workers or len(os.sched_getaffinity(0)), len(todo))
    files = sum(len(part.paths) for part in parts)
    done = files - sum(len(part.paths) for part in todo)
    with tqdm(total=files, initial=done, desc="preprocess", unit="file", disable=None) as bar, interrupt.deferred():
        if workers > 1:
            _process_in_pool(context, todo, workers, bar.update)
        else:
            _process_here(context, todo, bar.update)
    interrupt.check()


def _process_here(context: Context, parts: list[Part], advance: Advance) -> None:
    for part in parts:
        try:
            process_part(context, part, interrupt.requested, lambda: advance(1))
        except Stopped:
            return


def _process_in_pool(context: Context, parts: list[Part], workers: int, advance: Advance) -> None:
    spawn = multiprocessing.get_context("spawn")
    shared = _Shared(spawn)
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(context, shared)) as pool:
        try:
            _wait([pool.submit(_work, part) for part in parts], shared, advance)
        except BrokenProcessPool:
            if not interrupt.requested():
                raise UserError("a process of the pool died, perhaps for want of memory; lower preprocess.workers and run again") from None
        finally:
            shared.stop.set()
            pool.shutdown(cancel_futures=True)


def _wait(futures: Iterable["Future[None]"], shared: "_Shared", advance: Advance) -> None:
    """Until all are done or a signal arrives, moving the bar."""
    before, pending = 0, set(futures)
    while pending and not interrupt.requested():
        done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            future.result()
        now = shared.files.value
        advance(now - before)
        before = now


class _Shared:
    """What the processes of the pool share with this one."""

    def __init__(self, spawn: multiprocessing.context.SpawnContext):
        self.stop = spawn.Event()
        self.files = spawn.Value("Q", 0)

    def advance(self) -> None:
        """One file more is done."""
        with self.files.get_lock():
            self.files.value += 1


_worker: tuple[Context, _Shared]


def _start_worker(context: Context, shared: _Shared) -> None:
    """Begins a process of the pool: the parent alone answers to signals."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = context, shared


def _die_with_parent() -> None:
    """A parent that was killed cannot say so: without this, its pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _work(part: Part) -> None:
    context, shared = _worker
    try:
        process_part(context, part, shared.stop.is_set, shared.advance)
    except Stopped:
        return
