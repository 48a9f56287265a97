"""The first and the last step of every pipeline."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def begin(name: str, raw: str, root: str, partitions: int, data_version: str) -> list[str]:
    """Checks that data, storage and MLflow can be used, and opens the MLflow run.

    Args:
        name: of the pipeline.
        raw: folder of the raw files.
        root: folder of all outputs.
        partitions: how many.
        data_version: digest of the raw files as DVC knows them; empty: they are not under DVC.

    Returns:
        For each partition, as JSON, its number (`i/n`), `raw`, and a digest of the listing of `raw`. They belong together, since
        kfp's local runs give a task in a loop the loop's item in place of any output of a task outside; and as text, since
        Kubeflow's compiler and driver mix up the fields of items that are mappings.
    """
    import json

    from components.common.runs.step import exit_codes
    from pipelines.pipeline_run import begin

    with exit_codes("begin"):
        listing = begin(name=name, raw=raw, root=root, tags={"data.dvc.md5": data_version} if data_version else {})
    return [json.dumps({"number": f"{number}/{partitions}", "raw": raw, "listing": listing}) for number in range(partitions)]


@dsl.component(base_image="cpu", install_kfp_package=False)
def end(status: dsl.PipelineTaskFinalStatus) -> None:
    """Closes the MLflow run with the state that the pipeline ended in."""
    from components.common.runs.step import exit_codes
    from pipelines.pipeline_run import end

    with exit_codes("end"):
        end(state=status.state)


@dsl.component(base_image="cpu", install_kfp_package=False)
def plan(
    shards: str, root: str, heads: str, after: list[str], pretrain: str, classify: str, detect: str, invert: str, study: str
) -> list[str]:
    """Lists the models of a study: first what others build on, then what is compared.

    Args:
        shards: folder of the shards.
        root: folder of all outputs.
        heads: what backbones are compared for, with commas.
        after: folders of the first models; none: it is those that are asked for.
        pretrain: JSON of its section.
        classify: the same.
        detect: the same.
        invert: the same.
        study: the same.

    Returns:
        What the component `model` takes, for each.
    """
    import json

    from components.common.runs.step import exit_codes
    from components.params import parse
    from pipelines.study_plan import plan

    with exit_codes("plan"):
        sections = {"pretrain": pretrain, "classify": classify, "detect": detect, "invert": invert, "study": study}
        found = plan(shards, root, parse(sections), heads)
    return [json.dumps(model) for model in (found.cells() if after else found.first())]


@dsl.component(base_image="gpu", install_kfp_package=False)
def model(item: str, runtime: str) -> str:
    """Trains one model of a study.

    Args:
        item: JSON of a pipelines.study_plan.Model.
        runtime: JSON of the section `runtime`.

    Returns:
        The folder of its output.
    """
    import json
    from importlib import import_module

    from components.common.runs.step import exit_codes
    from components.params import parse

    stage, inputs, section, folder = (json.loads(item)[name] for name in ("stage", "inputs", "section", "folder"))
    with exit_codes(stage):
        run = import_module(f"components.{stage}.run").run
        params = parse({stage: section, "runtime": runtime})
        run(**json.loads(inputs), out=folder, **params.arguments(stage))
    return str(folder)
