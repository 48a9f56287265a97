"""The Kubeflow components that belong to no stage: the first and the last of a pipeline, and those of a study and a sweep."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def begin(
    name: str,
    raw: str,
    start: str,
    root: str,
    partitions: int,
    data_version: str,
) -> NamedTuple("Outputs", [("Output", list[str]), ("start", str)]):  # type: ignore[valid-type]
    """Checks that data, storage and MLflow can be used, and opens the MLflow run.

    Args:
        name: name of the pipeline.
        raw: folder of the raw files.
        start: starting point of pretraining; empty for random weights.
        root: parent folder of all outputs.
        partitions: number of partitions.
        data_version: MD5 of the raw files if DVC tracks them, else empty.

    Returns:
        For each partition a JSON text: its number (`i/n`), `raw`, and a digest of the listing of `raw`. They are passed on together,
        since local runs of kfp give a task in a loop the item of the loop in place of any output of a task outside; and as text, since
        the compiler and the driver of Kubeflow mix up the fields of items that are mappings. And the starting point as JSON, with the
        digest of its content, on which the steps that take it depend.
    """
    import json

    from components.common.runs.step import exit_codes
    from pipelines.pipeline_run import begin, digest_start

    with exit_codes("begin"):
        known = {"uri": start, "sha256": digest_start(start)} if start else {}
        listing = begin(name=name, raw=raw, root=root, tags={"data.dvc.md5": data_version} if data_version else {})
    slices = [json.dumps({"number": f"{number}/{partitions}", "raw": raw, "listing": listing}) for number in range(partitions)]
    return (slices, json.dumps(known))


@dsl.component(base_image="cpu", install_kfp_package=False)
def begin_scoring(
    raw: str,
    model: str,
    root: str,
    partitions: int,
    data_version: str,
) -> NamedTuple("Outputs", [("Output", list[str]), ("model", str), ("reference", str)]):  # type: ignore[valid-type]
    """Does what `begin` does, and looks up the model, so that all steps use the same version.

    Args:
        raw: folder of the raw files.
        model: models:/NAME@ALIAS or models:/NAME/VERSION.
        root: parent folder of all outputs.
        partitions: number of partitions.
        data_version: MD5 of the raw files if DVC tracks them, else empty.

    Returns:
        For each partition a JSON text as from `begin`, with what `preprocess` needs to know of the model and of the images that it has
        scored; the version and the folder of its predictions as JSON; and the SHA-256 of its reference for `monitor`, empty if there is
        none.
    """
    import json

    from components.common.runs.step import exit_codes
    from pipelines.pipeline_run import begin
    from pipelines.scoring_run import look_up

    with exit_codes("begin"):
        found = look_up(model, root)
        tags = {"model": found.uri} | ({"data.dvc.md5": data_version} if data_version else {})
        shared = {"raw": raw, "listing": begin(name="scoring", raw=raw, root=root, tags=tags), **found.for_partition()}
    slices = [json.dumps({"number": f"{number}/{partitions}", **shared}) for number in range(partitions)]
    return (slices, found.for_predict(), found.reference)


@dsl.component(base_image="cpu", install_kfp_package=False)
def end(status: dsl.PipelineTaskFinalStatus) -> None:
    """Closes the MLflow run with the final state of the pipeline."""
    from components.common.runs.step import exit_codes
    from pipelines.pipeline_run import end

    with exit_codes("end"):
        end(state=status.state)


@dsl.component(base_image="cpu", install_kfp_package=False)
def plan(
    shards: str,
    start: str,
    root: str,
    heads: str,
    phase: int,
    after: list[str],
    pretrain: str,
    classify: str,
    detect: str,
    invert: str,
    study: str,
) -> list[str]:
    """Lists the models of one phase of a study.

    Args:
        shards: folder of the shards.
        start: JSON of the starting point of the bases, from the component `begin`.
        root: parent folder of all outputs.
        heads: heads that backbones are compared by, separated by commas.
        phase: number of the phase, from 0.
        after: folders of the models of the phase before.
        pretrain: JSON of the section `pretrain`.
        classify: JSON of the section `classify`.
        detect: JSON of the section `detect`.
        invert: JSON of the section `invert`.
        study: JSON of the section `study`.

    Returns:
        For each model the argument of the component `model`.
    """
    import json

    from components.common.runs.step import exit_codes
    from components.params import parse
    from pipelines.study_plan import plan

    with exit_codes("plan"):
        sections = {"pretrain": pretrain, "classify": classify, "detect": detect, "invert": invert, "study": study}
        found = plan(shards, root, parse(sections), heads, json.loads(start))
    return [json.dumps(model) for model in found.phases()[phase]]


@dsl.component(base_image="gpu", install_kfp_package=False)
def model(item: str, runtime: str, processes: int) -> str:
    """Trains one model of a study or a sweep.

    Args:
        item: JSON of a model from pipelines/study_plan.py.
        runtime: JSON of the section `runtime`.
        processes: number of processes, one per GPU.

    Returns:
        The output folder.
    """
    import json
    from importlib import import_module

    from components.common.runs.step import Step, exit_codes
    from components.common.training.launch import run_here
    from components.params import parse

    stage, inputs, section, folder = (json.loads(item)[name] for name in ("stage", "inputs", "section", "folder"))
    with exit_codes(stage):
        run = import_module(f"components.{stage}.run").run
        params = parse({stage: section, "runtime": runtime})
        run_here(stage, run, json.loads(inputs), Step(**params.arguments(stage), out=folder), processes)
    return str(folder)


@dsl.component(base_image="cpu", install_kfp_package=False)
def combine(shards: str, backbone: str, root: str, section: str, sweep: str) -> list[str]:
    """Lists the models of a sweep.

    Args:
        shards: folder of the shards.
        backbone: folder of the backbone.
        root: parent folder of all outputs.
        section: JSON of the section of the head.
        sweep: JSON of the section `sweep`.

    Returns:
        For each model the argument of the component `model`.
    """
    import json

    from components.common.runs.step import exit_codes
    from components.params import parse
    from pipelines.sweep_plan import plan

    with exit_codes("plan"):
        params = parse({json.loads(sweep)["stage"]: section, "sweep": sweep})
        models = plan(shards, backbone, root, params)
    return [json.dumps(model) for model in models]


@dsl.component(base_image="cpu", install_kfp_package=False)
def choose(models: list[str], sweep: str) -> str:
    """Chooses among the models of a sweep and tells MLflow.

    Args:
        models: their folders.
        sweep: JSON of the section `sweep`.

    Returns:
        The folder of the best one.
    """
    from components.common.runs.step import exit_codes
    from components.params import parse
    from pipelines.sweep_plan import choose, tell

    with exit_codes("choose"):
        params = parse({"sweep": sweep}).sweep
        choice = choose(models, params)
        tell(choice, params, len(models))
    return choice.folder
