"""Pretraining in several processes by torchrun: the command line, and a launcher for one machine."""

import json
import os
import signal
import subprocess
from types import FrameType

from components.common.errors import UserError
from components.common.runs import signals
from components.common.runs.params import Runtime
from components.pretrain.params import Pretrain


def command(shards: list[str], out: str, params: Pretrain, runtime: Runtime) -> list[str]:
    """Returns the command line of the stage, with all parameters in it: none is read from the image."""
    sections = {"pretrain": params.values(), "runtime": runtime.values()}
    values = [f"--set={section}.{name}={json.dumps(value)}" for section, names in sections.items() for name, value in names.items()]
    return ["torchrun", "-m", "components", "pretrain", "--shards", *shards, "--out", out, "--params", os.devnull, *values]


def run_here(shards: list[str], out: str, params: Pretrain, runtime: Runtime, processes: int) -> None:
    """Pretrains on this machine in as many processes, one per GPU; torchrun starts them if there are several, and they print errors."""
    if processes > 1:
        torchrun, *rest = command(shards, out, params, runtime)
        _call([torchrun, "--standalone", f"--nproc-per-node={processes}", *rest])
        return
    from components.pretrain.run import run

    run(shards=shards, out=out, params=params, runtime=runtime)


def _call(command: list[str]) -> None:
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
        raise UserError(f"{command[0]} ended with exit code {code}; see the messages of its processes above")
