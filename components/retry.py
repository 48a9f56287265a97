"""Runs a step of a pipeline until it succeeds: `python -m components.retry COMMAND [ARGUMENT ...]`.

Kubeflow's launcher ends with 1 whatever the step ends with, and Argo, as Kubeflow configures it, tries again only what was lost with
its pod. So the step is tried again here, in its pod, where its exit code is known:

- 0 and 2 (a mistake of the user) end the step at once;
- 75 (stopped by a signal after saving, or a server or a lock that is not available) is tried again within seconds, for as long as
  attempts have been ending like this for less than PATIENCE_SECONDS;
- anything else is tried again CXR_RETRIES times, CXR_RETRY_SECONDS apart.

A signal is passed on to the command. SIGTERM alone is no reason to give up: if the pod ends, this process ends with it, and if only the
command was stopped, the next attempt resumes. SIGINT or a second signal is.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType

from components.common.runs.cores import prepare_openmp
from components.common.runs.signals import EXIT_CODE

RETRIES_VARIABLE = "CXR_RETRIES"
PAUSE_VARIABLE = "CXR_RETRY_SECONDS"
USER_ERROR = 2
WAIT_SECONDS = 15.0
PATIENCE_SECONDS = 600.0
ORPHAN_SECONDS = 30.0  # how long the processes of a command may outlive it, unless they were asked to stop: they may be saving
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphaned descendants become children of this process


class Attempts:
    """The attempts at a command."""

    def __init__(self, command: list[str], retries: int, pause: float):
        self.command, self.retries, self.pause = command, retries, pause
        self._process: subprocess.Popen[bytes] | None = None
        self._received: list[int] = []

    def run(self) -> int:
        """Returns the exit code of the last attempt."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        failures, unavailable_since = 0, None
        for attempt in count(1):
            self._received.clear()
            began = time.monotonic()
            code = self._attempt()
            now = time.monotonic()
            if code == EXIT_CODE:
                if unavailable_since is None or now - began > PATIENCE_SECONDS:
                    unavailable_since = now
                pause, final = WAIT_SECONDS, now - unavailable_since > PATIENCE_SECONDS
            else:
                failures, unavailable_since = failures + 1, None
                pause, final = self.pause, failures > self.retries
            if final or code in (0, USER_ERROR) or signal.SIGINT in self._received or len(self._received) > 1:
                return code
            sys.stderr.write(f"attempt {attempt} ended with exit code {code}; the next one begins in {pause:g} s\n")
            self._received.clear()
            until = time.monotonic() + pause
            while time.monotonic() < until:
                time.sleep(min(0.1, pause))
                if self._received:
                    return code
        raise AssertionError

    def _attempt(self) -> int:
        """Runs the command in a process group of its own, so that a signal reaches all of it, and waits until all of it has ended."""
        with subprocess.Popen(self.command, process_group=0) as self._process:
            code = self._process.wait()
            orphans = self._wait_for_orphans()
        self._process = None
        if -code in self._received:  # the shell died of the signal
            code = orphans[0] if orphans else EXIT_CODE
        return code if code >= 0 else 128 - code

    def _wait_for_orphans(self) -> list[int]:
        """Waits for the processes that the command has left, and returns their exit codes."""
        until = time.monotonic() + ORPHAN_SECONDS
        codes: list[int] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return codes
            if pid:
                codes.append(os.waitstatus_to_exitcode(status))
            elif len(self._received) > 1 or (not self._received and time.monotonic() > until):
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.05)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def main(command: list[str]) -> int:
    """Runs a command as the environment variables say and returns the exit code."""
    prepare_openmp()
    return Attempts(command, int(os.environ.get(RETRIES_VARIABLE, "0")), float(os.environ.get(PAUSE_VARIABLE, "0"))).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
