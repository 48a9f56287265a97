"""The paper's claims on one cohort: every arm, share of labels and seed, ending in one page. study/dvc.yaml is the same for DVC."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate import component as evaluation
from components.params import Params
from pipelines import shared_steps
from pipelines import steps as frame
from pipelines.resources import apply
from pipelines.settings import Settings


def study(settings: Settings, params: Params) -> BaseComponent:
    """The pipeline; loops are flat, since kfp's local runs mix up the items of nested ones."""
    given = shared_steps.sections(params)

    @dsl.pipeline(name="study", description="Does pretraining with IFA help where the paper says so?")
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
        study: str = given["study"],
        runtime: str = given["runtime"],
    ) -> None:
        with dsl.ExitHandler(apply(frame.end(), "end", settings), name="all"):
            begin = shared_steps.begin(settings, params, "study", raw, root, data_version)
            shards = shared_steps.shards(settings, begin.output, root, preprocess, runtime).outputs["Output"]
            sections = {"pretrain": pretrain, "classify": classify, "detect": detect, "invert": invert, "study": study}
            first = _models(settings, "pretrain", _plan(settings, shards, root, sections, []), runtime)
            cells = _models(settings, "classify", _plan(settings, shards, root, sections, first), runtime)
            apply(evaluation.compare(cells=cells, evaluate=evaluate, study=study), "evaluate", settings)

    return pipeline


def _plan(settings: Settings, shards: Any, root: Any, sections: dict[str, Any], after: Any) -> Any:
    task = frame.plan(shards=shards, root=root, heads=",".join(settings.heads), after=after, **sections)
    return apply(task, "begin", settings).set_display_name("plan").output


def _models(settings: Settings, step: Any, models: Any, runtime: Any) -> Any:
    """Trains models side by side, each with what the step of this name may use; returns their folders."""
    with dsl.ParallelFor(models, parallelism=settings.parallel_models) as item:
        task = frame.model(item=item, runtime=runtime)
        apply(task, step, settings)
    return dsl.Collected(task.output)
