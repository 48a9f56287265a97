"""A pipeline on this machine: kfp runs each step in a process of its own, with this environment's packages."""

import argparse
import os
import sys
import uuid
import warnings
from pathlib import Path
from typing import get_args

from kfp import local

from components.common.errors import UserError
from components.common.lineage import KFP_VARIABLE
from components.common.params import Params, load
from pipelines import packages
from pipelines import settings as cluster
from pipelines.settings import EXAMPLE, Settings, StepName

UI_FILES = "ui"
"""Below the folder of all outputs: what Kubeflow's own store would hold."""
ROOT = Path(__file__).parents[1]


def run(options: argparse.Namespace) -> int:
    """The command `local`."""
    settings = cluster.load(options.settings)
    if Path(options.settings) == EXAMPLE:
        settings = _here(settings)
    params = load(options.params, options.set)
    if options.name != "smoke" and not Path(options.raw).is_dir() and not options.raw.startswith("s3://"):
        raise UserError(f"--raw {options.raw}: no such folder; make one with `python -m components simulate --out {options.raw}`")
    return 0 if execute(options.name, settings, params, options.raw, str(Path(options.out).absolute())) else 1


def execute(name: str, settings: Settings, params: Params, raw: str, root: str) -> bool:
    """Runs a pipeline; whether it succeeded.

    Args:
        name: of the pipeline.
        settings: resources are ignored; retries, partitions and heads count.
        params: of the stages.
        raw: folder of the raw files.
        root: folder of all outputs.
    """
    pipeline = packages.build(name, settings, params)
    _prepare_environment(settings)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(root, UI_FILES)), raise_on_error=True)
    try:
        with warnings.catch_warnings():  # about resources, which mean nothing here
            warnings.simplefilter("ignore")
            pipeline(**packages.arguments(name, params, raw, root))
    except RuntimeError as error:
        print(f"local: {error}", file=sys.stderr)
        return False
    print(f"local: done, outputs in {root}")
    return True


def _here(settings: Settings) -> Settings:
    """The example settings without what makes sense on a cluster only: nothing is preempted here."""
    steps = {name: settings.step(name).model_copy(update={"retries": 0}) for name in get_args(StepName)}
    return settings.model_copy(update={"steps": steps, "environment": {}})


def _prepare_environment(settings: Settings) -> None:
    """Steps find this code wherever they are started, and their MLflow runs belong together."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ[KFP_VARIABLE] = f"local-{uuid.uuid4().hex[:12]}"
