"""The pipeline `sweep`: trains a head with each combination of some parameters, and evaluates the best one on the validation split."""

from kfp.dsl.base_component import BaseComponent

from components.evaluate import component as evaluation
from components.params import Params
from pipelines import kfp_components
from pipelines.resources import apply
from pipelines.settings import Settings
from pipelines.shared_steps import SharedSteps, pipeline
from pipelines.sweep_plan import combinations


def sweep(settings: Settings, params: Params) -> BaseComponent:
    """Returns the pipeline. A mistake in the grid is found here, before anything runs."""
    stage = params.sweep.stage
    combinations(params)

    @pipeline("sweep", "Parameters of a head, compared on the validation split", settings, params)
    def define(steps: SharedSteps) -> None:
        root, grid = steps.given["root"], steps.given["sweep"]
        shards = steps.shards(steps.begin())
        given = {"shards": shards, "backbone": steps.backbone(shards), "root": root, "section": steps.given[stage], "sweep": grid}
        items = apply(kfp_components.combine(**given), "begin", settings).set_display_name("plan").output
        chosen = apply(kfp_components.choose(models=steps.train(stage, items), sweep=grid), "begin", settings)
        chosen.set_display_name("choose").set_caching_options(False)  # it tells the run of this pipeline in MLflow
        apply(evaluation.evaluate(predictions=[chosen.output], root=root, params=steps.given["evaluate"]), "evaluate", settings)

    return define
