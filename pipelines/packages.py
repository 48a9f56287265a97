"""The pipelines by name, compiled: to a package for the cluster, byte for byte the same for the same settings and parameters."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.dsl.base_component import BaseComponent
from kfp.pipeline_spec import pipeline_spec_pb2

from components.params import Params
from pipelines import shared_steps, study, training
from pipelines.settings import Settings

PIPELINES: dict[str, Callable[[Settings, Params], BaseComponent]] = {
    "training": training.training,
    "smoke": training.smoke,
    "study": study.study,
}


LACKING = {
    "training": ("simulate", "study"),
    "smoke": ("study", "raw", "data_version"),
    "study": ("simulate", "register", "min_auroc"),
}
"""Parameters that a pipeline does not have."""


def build(name: str, settings: Settings, params: Params) -> BaseComponent:
    """A pipeline as kfp knows it.

    Args:
        name: of PIPELINES.
        settings: decide on resources, images and branches.
        params: become the defaults of the pipeline's parameters.
    """
    return PIPELINES[name](settings, params)


def compile_to(path: Path, name: str, settings: Settings, params: Params) -> None:
    """Writes a package: the pipeline's spec and its platform's, two YAML documents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(build(name, settings, params), str(path))


def read_spec(package: Path) -> pipeline_spec_pb2.PipelineSpec:
    """The first document of a package."""
    content = next(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    spec: pipeline_spec_pb2.PipelineSpec = json_format.ParseDict(content, pipeline_spec_pb2.PipelineSpec())
    return spec


def arguments(name: str, params: Params, raw: str | None, root: str, data_version: str = "") -> dict[str, Any]:
    """What a run of a pipeline is given.

    Args:
        name: of the pipeline.
        params: of the stages.
        raw: folder of the raw files; None where the pipeline has none.
        root: folder of all outputs.
        data_version: digest of the raw files, if they are under DVC.
    """
    given: dict[str, Any] = {**shared_steps.sections(params), "root": root, "min_auroc": params.register_.min_auroc}
    given |= {"raw": str(raw), "data_version": data_version}
    return {parameter: value for parameter, value in given.items() if parameter not in LACKING[name]}
