"""The pipeline `study`: the claims of the paper on one cohort, for each arm, condition and seed. study/dvc.yaml does the same by DVC."""

from typing import Any

from kfp.dsl.base_component import BaseComponent

from components.evaluate import component as evaluation
from components.params import Params
from pipelines import kfp_components
from pipelines.resources import apply
from pipelines.settings import Settings
from pipelines.shared_steps import SharedSteps, pipeline
from pipelines.study_plan import COMPARED


def study(settings: Settings, params: Params) -> BaseComponent:
    """Returns the pipeline. Its loops are flat, since local runs of kfp mix up the items of nested loops."""

    @pipeline("study", "Does pretraining with IFA help where the paper says so?", settings, params)
    def define(steps: SharedSteps) -> None:
        shards = steps.shards(steps.begin())
        bases = steps.train("pretrain", _plan(steps, shards, 0, []))
        backbones = steps.train("pretrain", _plan(steps, shards, 1, bases))
        cells = steps.train("classify", _plan(steps, shards, 2, backbones))
        task = evaluation.compare(cells=cells, evaluate=steps.given["evaluate"], study=steps.given["study"])
        apply(task, "evaluate", settings)

    return define


def _plan(steps: SharedSteps, shards: Any, phase: int, after: Any) -> Any:
    given = {name: steps.given[name] for name in ("start", "root", *COMPARED, "study")}
    task = kfp_components.plan(shards=shards, heads=",".join(steps.settings.heads), phase=phase, after=after, **given)
    return apply(task, "begin", steps.settings).set_display_name("plan").output
