"""The line that pipelines share: raw files to an evaluation, and to registered models, a classifier if it is good enough."""

import json
from types import ModuleType
from typing import Any

from kfp import dsl

from components.classify import component as classify
from components.detect import component as detect
from components.evaluate import component as evaluate
from components.invert import component as invert
from components.params import Params
from components.preprocess import component as preprocess
from components.pretrain import component as pretrain
from components.register import component as register
from pipelines import steps as frame
from pipelines.resources import apply, describe_nodes
from pipelines.settings import Settings

HEADS: dict[str, ModuleType] = {"classify": classify, "detect": detect, "invert": invert}
SECTIONS = ("simulate", "preprocess", "pretrain", "classify", "detect", "invert", "evaluate", "study", "register", "runtime")


def sections(params: Params) -> dict[str, str]:
    """JSON by section, as it travels. Text, since Kubeflow turns the numbers of a mapping into floats.

    `register.min_auroc` is not among them: it is a parameter of its own, which the pipeline's condition can read.
    """
    values = {name: params.section(name).values() for name in SECTIONS}
    values["register"].pop("min_auroc")
    return {name: json.dumps(section) for name, section in values.items()}


def begin(settings: Settings, params: Params, name: str, raw: Any, root: Any, data_version: Any) -> dsl.PipelineTask:
    """Checks what the run needs, and divides the raw files.

    Args:
        settings: of the cluster.
        params: for the number of parts, above which there can be no partitions.
        name: of the pipeline.
        raw: folder of the raw files.
        root: folder of all outputs.
        data_version: digest of the raw files, if they are under DVC.
    """
    count = min(settings.partitions, params.preprocess.parts)
    task = frame.begin(name=name, raw=raw, root=root, partitions=count, data_version=data_version)
    return apply(task, "begin", settings).set_caching_options(False)  # it looks at what is there now


def shards(settings: Settings, partitions: Any, root: Any, section: Any, runtime: Any) -> dsl.PipelineTask:
    """Preprocesses in partitions side by side and joins them.

    Args:
        settings: of the cluster.
        partitions: what the step `begin` returned.
        root: folder of all outputs.
        section: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.

    Returns:
        The merge, whose output is the folder of the shards.
    """
    with dsl.ParallelFor(partitions) as partition:  # without a name, which would keep Kubeflow from collecting
        task = preprocess.preprocess(partition=partition, root=root, params=section, runtime=runtime)
        apply(task, "preprocess", settings)
    merge = preprocess.merge(partitions=dsl.Collected(task.outputs["Output"]), root=root, params=section, runtime=runtime)
    return apply(merge, "merge", settings)


def backbone(settings: Settings, params: Params, shards: Any, root: Any, section: Any, runtime: Any) -> dsl.PipelineTask:
    """Pretrains: in one pod, or on as many nodes as the parameters say.

    Args:
        settings: of the cluster.
        params: for the number of nodes.
        shards: folder of the shards.
        root: folder of all outputs.
        section: JSON of the section `pretrain`.
        runtime: JSON of the section `runtime`.
    """
    if params.runtime.nodes > 1:
        cluster = json.dumps(describe_nodes(settings, params.runtime.nodes), sort_keys=True)
        return apply(pretrain.launch(shards=shards, root=root, params=section, runtime=runtime, cluster=cluster), "launch", settings)
    processes = max(settings.step("pretrain").gpus, 1)
    return apply(pretrain.pretrain(shards=shards, root=root, params=section, runtime=runtime, processes=processes), "pretrain", settings)


def models(settings: Settings, shards: Any, backbone: Any, root: Any, by_head: dict[str, Any], runtime: Any) -> dict[str, dsl.PipelineTask]:
    """Fine-tunes the backbone for everything that the settings ask for, side by side; the classifier comes first.

    Args:
        settings: of the cluster.
        shards: folder of the shards.
        backbone: folder of the backbone.
        root: folder of all outputs.
        by_head: JSON of each head's section.
        runtime: JSON of the section `runtime`.
    """
    made: dict[str, dsl.PipelineTask] = {}
    for name in sorted(settings.heads):
        head = getattr(HEADS[name], name)
        made[name] = apply(head(shards=shards, backbone=backbone, root=root, params=by_head[name], runtime=runtime), name, settings)
    return made


def verdict(settings: Settings, made: dict[str, dsl.PipelineTask], root: Any, evaluation: Any, registration: Any, min_auroc: Any) -> None:
    """Evaluates all models and registers them, the classifier if it is good enough; of the others, `register` alone is the judge.

    Args:
        settings: of the cluster.
        made: the models' tasks.
        root: folder of all outputs.
        evaluation: JSON of the section `evaluate`.
        registration: JSON of the section `register`.
        min_auroc: the floor.
    """
    folders = [task.outputs["Output"] for task in made.values()]
    judged = apply(evaluate.evaluate(predictions=folders, root=root, params=evaluation), "evaluate", settings)

    def registered(head: str) -> None:
        folder = made[head].outputs["Output"]
        given = {"root": root, "params": registration, "min_auroc": min_auroc, "takes_name": head == "classify"}
        task = register.register(model=folder, evaluation=judged.outputs["folder"], **given)
        apply(task, "register", settings).set_display_name(f"register-{head}")

    with dsl.If(judged.outputs["Output"] > min_auroc, name="good-enough"):
        registered("classify")
    for head in sorted(made.keys() - {"classify"}):
        registered(head)
