"""The pipeline `scoring`: raw files to predictions of a registered model, and their drift from its reference."""

from kfp.dsl.base_component import BaseComponent

from components.monitor import component as monitoring
from components.params import Params
from components.predict import component as prediction
from pipelines import kfp_components
from pipelines.resources import apply
from pipelines.settings import Settings
from pipelines.shared_steps import SharedSteps, pipeline


def scoring(settings: Settings, params: Params) -> BaseComponent:
    """Returns the pipeline."""

    @pipeline("scoring", "Raw radiographs to predictions of a registered model", settings, params)
    def define(steps: SharedSteps) -> None:
        given = steps.given
        partitions = min(settings.partitions, params.preprocess.parts)
        known = {name: given[name] for name in ("raw", "model", "root", "data_version")}
        task = apply(kfp_components.begin_scoring(partitions=partitions, **known), "begin", settings)
        begun = task.set_caching_options(False).outputs  # it looks up the present version, and what it has scored so far
        shards, model = steps.shards(begun["Output"]), begun["model"]
        task = prediction.predict(shards=shards, model=model, params=given["preprocess"], runtime=given["runtime"])
        predictions = apply(task, "predict", settings).outputs["Output"]
        compared = {"predictions": predictions, "model": model, "reference": begun["reference"]}
        apply(monitoring.monitor(root=given["root"], params=given["monitor"], **compared), "monitor", settings)

    return define
