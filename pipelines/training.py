"""The pipelines `training`, from raw files to registered models, and `smoke`, the same on simulated files."""

from kfp.dsl.base_component import BaseComponent

from components.params import Params
from components.simulate import component as simulation
from pipelines.resources import apply
from pipelines.settings import Settings
from pipelines.shared_steps import SharedSteps, pipeline


def training(settings: Settings, params: Params) -> BaseComponent:
    """Returns the pipeline that starts from raw files."""
    return pipeline("training", "Raw radiographs to registered models", settings, params)(_train)


def smoke(settings: Settings, params: Params) -> BaseComponent:
    """Returns the pipeline that simulates the raw files: it needs no data, and a run shows whether a new cluster is complete."""

    @pipeline("smoke", "Simulated radiographs to registered models, to check a cluster", settings, params)
    def define(steps: SharedSteps) -> None:
        cohort = simulation.simulate(root=steps.given["root"], params=steps.given["simulate"])
        steps.given |= {"raw": apply(cohort, "simulate", settings).output, "data_version": ""}
        _train(steps)

    return define


def _train(steps: SharedSteps) -> None:
    shards = steps.shards(steps.begin())
    models = steps.models(shards, steps.backbone(shards))
    steps.evaluate_and_register(models)
