"""The Kubeflow component of `classify`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def classify(
    shards: str,
    backbone: str,
    root: str,
    params: str,
    runtime: str,
    processes: int,
    metrics: dsl.Output[dsl.Metrics],
    model: dsl.Output[dsl.Model],
) -> str:
    """Fine-tunes a classifier of findings.

    Args:
        shards: folder of the shards.
        backbone: folder of the backbone; empty: train from scratch.
        root: parent folder of all outputs.
        params: JSON of the section `classify`.
        runtime: JSON of the section `runtime`.
        processes: number of processes, one per GPU.
        metrics: metrics on the validation split.
        model: model.json, which describes the weights.

    Returns:
        The folder of the model and its predictions.
    """
    from components.classify.params import Classify
    from components.classify.run import run
    from components.common.formats.model import DESCRIPTION
    from components.common.runs.step import step
    from components.common.training.launch import run_here

    with step("classify", root, Classify, params, {"shards": shards, "backbone": backbone}, runtime) as this:
        run_here("classify", run, {"shards": [shards], "backbone": backbone or None}, this, processes)
    this.show({DESCRIPTION: model.path}, metrics)
    return this.out
