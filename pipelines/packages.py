"""The pipelines compiled to packages for the cluster; the same settings and parameters give the same bytes."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from components.common.errors import UserError
from components.params import Params
from pipelines import scoring, study, sweep, training
from pipelines.settings import Settings

PIPELINES: dict[str, Callable[[Settings, Params], BaseComponent]] = {
    "training": training.training,
    "smoke": training.smoke,
    "scoring": scoring.scoring,
    "study": study.study,
    "sweep": sweep.sweep,
}


def compile_command(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Runs the command `compile`."""
    out = Path(options.out)
    if out.suffix != ".yaml":
        raise UserError(f"--out {out}: must end in .yaml")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    compile_to(out, options.name, settings, params)
    return 0


def build(name: str, settings: Settings, params: Params) -> BaseComponent:
    """Builds a pipeline: settings decide on resources, images and branches, params become the defaults of its parameters."""
    return PIPELINES[name](settings, params)


def compile_to(path: Path, name: str, settings: Settings, params: Params) -> None:
    """Writes a package: two YAML documents, the pipeline spec and the platform spec."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(build(name, settings, params), str(path))
