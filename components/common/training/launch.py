"""A training in several processes by torchrun: the command line, and a launcher for one machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import FrameType

from components.common.runs import signals
from components.common.runs.params import Runtime, Section
from components.common.runs.step import Step

Inputs = Mapping[str, str | list[str] | None]  # paths by name


def command(stage: str, inputs: Inputs, out: str, params: Section, runtime: Runtime, *options: str) -> list[str]:
    """Returns the arguments of Python for a stage, with all parameters in them: none is read from the image.

    Args:
        stage: its name.
        inputs: its inputs; those that are None are left out.
        out: output folder.
        params: section of the stage.
        runtime: section `runtime`.
        options: options of torchrun.
    """
    given = [[f"--{name}", *([paths] if isinstance(paths, str) else paths)] for name, paths in inputs.items() if paths]
    sections = {stage: params.values(), "runtime": runtime.values()}
    values = [f"--set={section}.{name}={json.dumps(value)}" for section, names in sections.items() for name, value in names.items()]
    arguments = [*(word for words in given for word in words), "--out", out, "--params", os.devnull, *values]
    return ["-m", "components.torchrun", *options, "-m", "components", stage, *arguments]


def run_here(stage: str, run: Callable[..., None], inputs: Inputs, step: Step, processes: int) -> None:
    """Runs a stage on this machine in as many processes, one per GPU; torchrun starts them if there are several, and they print errors."""
    if processes == 1:
        run(**inputs, out=step.out, params=step.params, runtime=step.runtime)
        return
    options = ("--standalone", f"--nproc-per-node={processes}")
    _call([sys.executable, *command(stage, inputs, step.out, step.params, step.runtime, *options)])


def _call(command: list[str]) -> None:
    """Runs a command, passes signals on to it, and ends with its exit code if that is not 0."""
    with subprocess.Popen(command) as process:

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        earlier = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        code = process.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == signals.EXIT_CODE:
        raise signals.Interrupted
    if code:
        raise SystemExit(code if code > 0 else 1)
