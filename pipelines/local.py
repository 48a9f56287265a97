"""The command `local`: a pipeline on this machine. kfp runs each step in a process with this environment, or in a container."""

import argparse
import builtins
import os
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import local

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.delivery import shown
from components.common.runs.provenance import KFP_VARIABLE
from components.params import Params
from pipelines import packages, parameters
from pipelines.settings import COMMIT, EXAMPLE, STEPS, Images, Settings

BUILT = Images(cpu=f"cxr-cpu:{COMMIT}", gpu=f"cxr-gpu:{COMMIT}")  # the images that `make images` builds from a clean checkout
UI_FILES = "ui"  # folder for the artifacts that Kubeflow would keep in its own store
REPOSITORY = Path(__file__).parents[1]


def run(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Runs the command `local`."""
    if Path(options.settings) == EXAMPLE:
        settings = _without_cluster(settings)
    remote = storage.is_s3(options.raw)
    if options.name != "smoke" and not remote and not Path(options.raw).is_dir():
        raise UserError(f"--raw {options.raw}: no such folder; make one with `python -m components simulate --out {options.raw}`")
    raw = options.raw if remote else str(Path(options.raw).absolute())
    start = options.start
    if start and not storage.is_s3(start):
        start = str(Path(start).absolute())
        if not Path(start).exists():
            raise UserError(f"--start {options.start}: no such file or folder; leave it out for random weights")
    out = str(Path(options.out).absolute())
    return 0 if execute(options.name, settings, params, raw, out, options.runner, start, options.model) else 1


def execute(
    name: str, settings: Settings, params: Params, raw: str, root: str, runner: str = "subprocess", start: str = "", model: str = ""
) -> bool:
    """Runs a pipeline and returns whether it succeeded.

    Of the settings, resources are ignored; images, user and environment count for the runner `docker` only, while the runner
    `subprocess` uses this environment.
    """
    arguments = parameters.arguments(name, params, raw, root, start=start, model=model)
    pipeline = packages.build(name, settings, params)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    os.environ[KFP_VARIABLE] = f"local-{uuid.uuid4().hex[:12]}"
    try:
        with _runner(runner, settings, (raw, start), root) as chosen, _restored_print(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about resources, which local runs ignore
            local.init(chosen, pipeline_root=str(Path(root, UI_FILES)), raise_on_error=True)
            pipeline(**arguments)
    except RuntimeError as error:
        print(f"local: {error}", file=sys.stderr)
        return False
    print(f"local: done, outputs in {root}")
    return True


@contextmanager
def _restored_print() -> Iterator[None]:
    """Restores `print`: kfp replaces it to indent the output of a step, and parallel steps may restore the replacement of another."""
    original = builtins.print
    try:
        yield
    finally:
        builtins.print = original


@contextmanager
def _runner(name: str, settings: Settings, inputs: tuple[str, ...], root: str) -> Iterator[Any]:
    if name == "subprocess":
        yield local.SubprocessRunner(use_venv=False)
        return
    from pipelines import containers

    with containers.runner(settings, inputs, root) as found:
        print(f"local: MLflow runs go to {shown(containers.tracking(root))}")
        yield found


def _without_cluster(settings: Settings) -> Settings:
    """Removes from the example settings what makes sense on a cluster only: retries, and the addresses of its services."""
    steps = {name: settings.step(name).model_copy(update={"retries": 0}) for name in STEPS}
    return settings.model_copy(update={"steps": steps, "environment": {}, "images": BUILT})
