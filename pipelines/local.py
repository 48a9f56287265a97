"""A pipeline on this machine: kfp runs each step in a process of its own, with this environment's packages, or in a container."""

import argparse
import builtins
import os
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from kfp import local

from components.common.errors import UserError
from components.common.runs import storage
from components.common.runs.provenance import KFP_VARIABLE
from components.params import Params, load
from pipelines import packages
from pipelines import settings as cluster
from pipelines.settings import COMMIT, EXAMPLE, Images, Settings, StepName

BUILT = Images(cpu=f"cxr-cpu:{COMMIT}", gpu=f"cxr-gpu:{COMMIT}")
"""What `make images` builds from a clean checkout."""
UI_FILES = "ui"
"""Below the folder of all outputs: what Kubeflow's own store would hold."""
ROOT = Path(__file__).parents[1]


def run(options: argparse.Namespace) -> int:
    """The command `local`."""
    settings = cluster.load(options.settings)
    if Path(options.settings) == EXAMPLE:
        settings = _here(settings)
    params = load(options.params, options.set)
    raw = options.raw if storage.is_s3(options.raw) else str(Path(options.raw).absolute())
    if options.name != "smoke" and not Path(options.raw).is_dir() and not storage.is_s3(options.raw):
        raise UserError(f"--raw {options.raw}: no such folder; make one with `python -m components simulate --out {options.raw}`")
    return 0 if execute(options.name, settings, params, raw, str(Path(options.out).absolute()), options.runner) else 1


def execute(name: str, settings: Settings, params: Params, raw: str, root: str, runner: str = "subprocess") -> bool:
    """Runs a pipeline; whether it succeeded.

    Args:
        name: of the pipeline.
        settings: retries, partitions and heads count, and with containers images, user and environment; resources are ignored.
        params: of the stages.
        raw: folder of the raw files.
        root: folder of all outputs.
        runner: subprocess, with this environment's packages, or docker, with those of the images.
    """
    pipeline = packages.build(name, settings, params)
    _prepare_environment(settings)
    try:
        with _runner(runner, settings, raw, root) as chosen, _own_print(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about resources, which mean nothing here
            local.init(chosen, pipeline_root=str(Path(root, UI_FILES)), raise_on_error=True)
            pipeline(**packages.arguments(name, params, raw, root))
    except RuntimeError as error:
        print(f"local: {error}", file=sys.stderr)
        return False
    print(f"local: done, outputs in {root}")
    return True


@contextmanager
def _own_print() -> Iterator[None]:
    """Puts `print` back: kfp replaces it to indent what a step prints, and steps side by side may put back one another's."""
    ours = builtins.print
    try:
        yield
    finally:
        builtins.print = ours


@contextmanager
def _runner(name: str, settings: Settings, raw: str, root: str) -> Iterator[Any]:
    if name == "subprocess":
        yield local.SubprocessRunner(use_venv=False)
        return
    from pipelines import containers

    with containers.runner(settings, raw, root) as found:
        print(f"local: MLflow runs go to {containers.tracking(root)}")
        yield found


def _here(settings: Settings) -> Settings:
    """The example settings without what makes sense on a cluster only: nothing is preempted here."""
    steps = {name: settings.step(name).model_copy(update={"retries": 0}) for name in get_args(StepName)}
    return settings.model_copy(update={"steps": steps, "environment": {}, "images": BUILT})


def _prepare_environment(settings: Settings) -> None:
    """Steps find this code wherever they are started, and their MLflow runs belong together."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ[KFP_VARIABLE] = f"local-{uuid.uuid4().hex[:12]}"
