"""The steps that the pipelines share, from the raw files to registered models."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate import component as evaluation
from components.heads import HEADS
from components.params import Params
from components.preprocess import component as preprocessing
from components.pretrain import component as pretraining
from components.register import component as registration
from pipelines import kfp_components, parameters
from pipelines.resources import apply, describe_nodes, processes
from pipelines.settings import GATED, Settings


@dataclass
class SharedSteps:
    """Adds steps to the pipeline that is being defined."""

    pipeline: str  # name of the pipeline
    settings: Settings
    params: Params  # parameters that decide on the shape of the pipeline, such as the number of nodes
    given: dict[str, Any]  # the parameters of the pipeline, whose values are known only when it runs

    def add(self, component: Callable[..., dsl.PipelineTask], step: str, section: str, **inputs: Any) -> dsl.PipelineTask:
        """Adds a stage: its component, the step in the settings, its section of params.yaml, and its inputs."""
        shared = {"root": self.given["root"], "params": self.given[section], "runtime": self.given["runtime"]}
        return apply(component(**inputs, **shared), step, self.settings)

    def begin(self) -> Any:
        """Checks what the run needs and divides the raw files; returns the partitions, and keeps the starting point with its digest."""
        given = {name: self.given[name] for name in ("raw", "start", "root", "data_version")}
        count = min(self.settings.partitions, self.params.preprocess.parts)
        task = apply(kfp_components.begin(name=self.pipeline, partitions=count, **given), "begin", self.settings)
        outputs = task.set_caching_options(False).outputs  # it checks the present state
        self.given["start"] = outputs["start"]
        return outputs["Output"]

    def shards(self, partitions: Any) -> Any:
        """Preprocesses the partitions in parallel and merges them; returns the folder of the shards."""
        with dsl.ParallelFor(partitions) as partition:  # without a name, which would keep Kubeflow from collecting the outputs
            task = self.add(preprocessing.preprocess, "preprocess", "preprocess", partition=partition)
        return self.add(preprocessing.merge, "merge", "preprocess", partitions=dsl.Collected(task.outputs["Output"])).outputs["Output"]

    def backbone(self, shards: Any) -> Any:
        """Pretrains in one pod, or on as many nodes as `runtime.nodes` says; returns the folder of the backbone."""
        nodes, given = self.params.runtime.nodes, {"shards": shards, "start": self.given["start"]}
        if nodes > 1:
            cluster = json.dumps(describe_nodes(self.settings, nodes), sort_keys=True)
            task = self.add(pretraining.launch, "launch", "pretrain", cluster=cluster, **given)
        else:
            task = self.add(pretraining.pretrain, "pretrain", "pretrain", processes=processes(self.settings, "pretrain"), **given)
        return task.outputs["Output"]

    def models(self, shards: Any, backbone: Any) -> dict[str, Any]:
        """Trains the heads of the settings in parallel; returns the folders of the models by head."""
        folders = {}
        for head in HEADS:
            if head in self.settings.heads:
                component = getattr(import_module(f"components.{head}.component"), head)
                given = {"shards": shards, "backbone": backbone, "processes": processes(self.settings, head)}
                folders[head] = self.add(component, head, head, **given).outputs["Output"]
        return folders

    def train(self, step: str, items: Any) -> Any:
        """Trains a list of models in parallel, each with the resources of a step; returns their folders."""
        with dsl.ParallelFor(items, parallelism=self.settings.parallel_models) as item:
            count = processes(self.settings, step)
            task = apply(kfp_components.model(item=item, runtime=self.given["runtime"], processes=count), step, self.settings)
        return dsl.Collected(task.output)

    def evaluate_and_register(self, models: dict[str, Any]) -> None:
        """Evaluates all models and registers them; the one that the gate judges only if it passes."""
        root, min_auroc = self.given["root"], self.given["min_auroc"]
        task = evaluation.evaluate(predictions=list(models.values()), root=root, params=self.given["evaluate"])
        evaluated = apply(task, "evaluate", self.settings).outputs

        def register(head: str) -> None:
            given = {"root": root, "params": self.given["register"], "min_auroc": min_auroc, "takes_name": head == GATED}
            task = registration.register(model=models[head], evaluation=evaluated["folder"], **given)
            apply(task, "register", self.settings).set_display_name(f"register-{head}")

        with dsl.If(evaluated["Output"] > min_auroc, name="good-enough"):
            register(GATED)
        for head in models:
            if head != GATED:
                register(head)


def pipeline(name: str, description: str, settings: Settings, params: Params) -> Callable[[Callable[[SharedSteps], None]], BaseComponent]:
    """Decorates the function that defines a pipeline, whose last step `end` runs even if another step fails.

    kfp takes the parameters of a pipeline from the signature of a function. It is computed here, so that the sections of the heads
    need not be spelled out.
    """
    defaults = parameters.defaults(name, params)

    def decorate(define: Callable[[SharedSteps], None]) -> BaseComponent:
        def with_end(*given: Any) -> None:
            with dsl.ExitHandler(apply(kfp_components.end(), "end", settings), name="all"):
                define(SharedSteps(name, settings, params, dict(zip(parameters.PARAMETERS[name], given, strict=True))))

        with_end.__signature__ = inspect.Signature([_parameter(one, defaults) for one in parameters.PARAMETERS[name]])  # type: ignore[attr-defined]
        return dsl.pipeline(name=name, description=description)(with_end)

    return decorate


def _parameter(name: str, defaults: dict[str, Any]) -> inspect.Parameter:
    kind, default = inspect.Parameter.POSITIONAL_OR_KEYWORD, defaults.get(name, inspect.Parameter.empty)
    return inspect.Parameter(name, kind, default=default, annotation=type(defaults.get(name, "")))
