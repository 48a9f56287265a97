"""Raw files to a registered model, and the same from simulated files, for a new cluster."""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.common.params import Params
from components.pipeline import component as frame
from components.simulate import component as simulation
from pipelines import line
from pipelines.resources import apply
from pipelines.settings import Settings


def training(settings: Settings, params: Params) -> BaseComponent:
    """The pipeline from raw files on: its parameters are places, JSON of each section, and the gate's floor."""
    given = line.sections(params)

    @dsl.pipeline(name="training", description="Raw radiographs to a registered model")
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
        min_auroc: float = params.register_.min_auroc,
    ) -> None:
        with dsl.ExitHandler(apply(frame.end(), "end", settings), name="all"):
            begin = line.begin(settings, params, "training", raw, root, data_version)
            by_head = {"classify": classify, "detect": detect, "invert": invert}
            shards = line.shards(settings, begin.output, root, preprocess)
            backbone = line.backbone(settings, params, shards.outputs["Output"], root, pretrain)
            models = line.models(settings, shards.outputs["Output"], backbone.outputs["Output"], root, by_head)
            line.verdict(settings, models, root, evaluate, register, min_auroc)

    return pipeline


def smoke(settings: Settings, params: Params) -> BaseComponent:
    """The pipeline from simulated files on, which needs no data: one run shows whether a new cluster has all that it takes."""
    given = line.sections(params)

    @dsl.pipeline(name="smoke", description="Simulated radiographs to a registered model, to check a cluster")
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
        min_auroc: float = params.register_.min_auroc,
    ) -> None:
        with dsl.ExitHandler(apply(frame.end(), "end", settings), name="all"):
            cohort = apply(simulation.simulate(root=root, params=simulate), "simulate", settings)
            begin = line.begin(settings, params, "smoke", cohort.output, root, "")
            by_head = {"classify": classify, "detect": detect, "invert": invert}
            shards = line.shards(settings, begin.output, root, preprocess)
            backbone = line.backbone(settings, params, shards.outputs["Output"], root, pretrain)
            models = line.models(settings, shards.outputs["Output"], backbone.outputs["Output"], root, by_head)
            line.verdict(settings, models, root, evaluate, register, min_auroc)

    return pipeline
