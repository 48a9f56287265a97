"""The command line that pretrains in several processes, by torchrun: in one pod, or in every pod of a TrainJob."""

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
    """The stage's command line with every parameter in it: nothing is read from the image.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `pretrain`.
        runtime: the section `runtime`.
    """
    sections = {"pretrain": params.values(), "runtime": runtime.values()}
    values = [f"--set={section}.{name}={json.dumps(value)}" for section, names in sections.items() for name, value in names.items()]
    return ["torchrun", "-m", "components", "pretrain", "--shards", *shards, "--out", out, "--params", os.devnull, *values]


def run_here(shards: list[str], out: str, params: Pretrain, runtime: Runtime, processes: int) -> None:
    """Pretrains on this machine.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `pretrain`.
        runtime: the section `runtime`.
        processes: one a GPU; above 1 torchrun starts them.

    Raises:
        Interrupted: a signal came; the checkpoint is written.
        UserError: a mistake, which the processes have told.
    """
    if processes > 1:
        torchrun, *rest = command(shards, out, params, runtime)
        _call([torchrun, "--standalone", f"--nproc-per-node={processes}", *rest])
        return
    from components.pretrain.run import run

    run(shards=shards, out=out, params=params, runtime=runtime)


def _call(command: list[str]) -> None:
    """Runs a command, and passes signals on to it."""
    with subprocess.Popen(command) as started:

        def forward(number: int, frame: FrameType | None) -> None:
            started.send_signal(number)

        earlier = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        code = started.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == signals.EXIT_CODE:
        raise signals.Interrupted
    if code:
        raise UserError(f"{command[0]} ended with {code}; its processes' messages stand above")
