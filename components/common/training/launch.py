"""Pretraining in several processes by torchrun: the command line, and a launcher for one machine."""

import json
import os
import signal
import subprocess
import sys
from types import FrameType

from components.common.runs import signals
from components.common.runs.params import Runtime
from components.pretrain.params import Pretrain


def command(shards: list[str], out: str, params: Pretrain, runtime: Runtime, *options: str) -> list[str]:
    """Returns the arguments of Python for the stage, with all parameters in them: none is read from the image.

    Args:
        shards: folders of the shards.
        out: output folder.
        params: section `pretrain`.
        runtime: section `runtime`.
        options: options of torchrun.
    """
    sections = {"pretrain": params.values(), "runtime": runtime.values()}
    values = [f"--set={section}.{name}={json.dumps(value)}" for section, names in sections.items() for name, value in names.items()]
    stage = ["-m", "components", "pretrain", "--shards", *shards, "--out", out, "--params", os.devnull, *values]
    return ["-m", "components.torchrun", *options, *stage]


def run_here(shards: list[str], out: str, params: Pretrain, runtime: Runtime, processes: int) -> None:
    """Pretrains on this machine in as many processes, one per GPU; torchrun starts them if there are several, and they print errors."""
    if processes > 1:
        _call([sys.executable, *command(shards, out, params, runtime, "--standalone", f"--nproc-per-node={processes}")])
        return
    from components.pretrain.run import run

    run(shards=shards, out=out, params=params, runtime=runtime)


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
