"""Raw files to registered models, and the same from simulated files, for a new cluster."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.params import Params
from components.simulate import component as simulation
from pipelines import shared_steps
from pipelines import steps as frame
from pipelines.resources import apply
from pipelines.settings import Settings


def training(settings: Settings, params: Params) -> BaseComponent:
    """The pipeline from raw files on: its parameters are places, JSON of each section, and the gate's floor."""
    given = shared_steps.sections(params)

    @dsl.pipeline(name="training", description="Raw radiographs to registered models")
    def pipeline(
        raw: str,
        root: str,
        data_version: str = "",
        preprocess: str = given["preprocess"],
        pretrain: str = given["pretrain"],
        classify: str = given["classify"],
        detect: str = given["detect"],
        invert: str = given["invert"],
        evaluate: str = given["evaluate"],
        register: str = given["register"],
        runtime: str = given["runtime"],
        min_auroc: float = params.register_.min_auroc,
    ) -> None:
        sections = {"preprocess": preprocess, "pretrain": pretrain, "classify": classify, "detect": detect, "invert": invert}
        sections |= {"evaluate": evaluate, "register": register, "runtime": runtime}
        with dsl.ExitHandler(apply(frame.end(), "end", settings), name="all"):
            _train(settings, params, "training", (raw, root, data_version), sections, min_auroc)

    return pipeline


def smoke(settings: Settings, params: Params) -> BaseComponent:
    """The pipeline from simulated files on, which needs no data: one run shows whether a new cluster has all that it takes."""
    given = shared_steps.sections(params)

    @dsl.pipeline(name="smoke", description="Simulated radiographs to registered models, to check a cluster")
    def pipeline(
        root: str,
        simulate: str = given["simulate"],
        preprocess: str = given["preprocess"],
        pretrain: str = given["pretrain"],
        classify: str = given["classify"],
        detect: str = given["detect"],
        invert: str = given["invert"],
        evaluate: str = given["evaluate"],
        register: str = given["register"],
        runtime: str = given["runtime"],
        min_auroc: float = params.register_.min_auroc,
    ) -> None:
        sections = {"preprocess": preprocess, "pretrain": pretrain, "classify": classify, "detect": detect, "invert": invert}
        sections |= {"evaluate": evaluate, "register": register, "runtime": runtime}
        with dsl.ExitHandler(apply(frame.end(), "end", settings), name="all"):
            cohort = apply(simulation.simulate(root=root, params=simulate), "simulate", settings)
            _train(settings, params, "smoke", (cohort.output, root, ""), sections, min_auroc)

    return pipeline


def _train(settings: Settings, params: Params, name: str, places: tuple[Any, Any, Any], sections: dict[str, Any], min_auroc: Any) -> None:
    """The tasks that both pipelines have, in the present one.

    Args:
        settings: of the cluster.
        params: of the stages.
        name: of the pipeline.
        places: folder of the raw files, folder of all outputs, and digest of the raw files if they are under DVC.
        sections: JSON by name.
        min_auroc: the floor.
    """
    raw, root, data_version = places
    begin = shared_steps.begin(settings, params, name, raw, root, data_version)
    shards = shared_steps.shards(settings, begin.output, root, sections["preprocess"], sections["runtime"]).outputs["Output"]
    backbone = shared_steps.backbone(settings, params, shards, root, sections["pretrain"], sections["runtime"]).outputs["Output"]
    models = shared_steps.models(settings, shards, backbone, root, sections, sections["runtime"])
    shared_steps.verdict(settings, models, root, sections["evaluate"], sections["register"], min_auroc)
