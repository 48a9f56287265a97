"""A trace of some training steps by torch.profiler: which operations and kernels run when, and where a GPU is idle."""

import gzip
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from components.common.formats.atomic import replaced

TRACE = "trace.json.gz"  # in the work folder; Chrome's format
WARM_UP = 5  # steps of a process before the trace, in which cuDNN chooses algorithms and the compiler works

log = logging.getLogger(__name__)


@contextmanager
def traced(path: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Traces up to `steps` steps after the first WARM_UP, and writes them to `path`; yields what to call after each step.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    if not steps:
        yield lambda: None
        return

    def write(profile: torch.profiler.profile) -> None:
        if profile.step_num <= WARM_UP:
            return
        with replaced(path) as scratch:
            profile.export_chrome_trace(str(scratch))
            scratch.write_bytes(gzip.compress(scratch.read_bytes()))
        log.info("%s: the trace of %d steps", path, profile.step_num - WARM_UP)

    schedule = torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profile:
        yield profile.step
    if profile.step_num <= WARM_UP:
        log.warning("runtime.profile_steps: no trace, since %d steps were left and the first %d are not traced", profile.step_num, WARM_UP)
