"""The Kubeflow components of `pretrain`: in the pod of the step, or on several nodes by a TrainJob."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def pretrain(
    shards: str,
    start: str,
    root: str,
    params: str,
    runtime: str,
    processes: int,
    metrics: dsl.Output[dsl.Metrics],
    backbone: dsl.Output[dsl.Model],
) -> str:
    """Pretrains a backbone in the pod of the step.

    Args:
        shards: folder of the shards.
        start: JSON of the starting point, from the component `begin`.
        root: parent folder of all outputs.
        params: JSON of the section `pretrain`.
        runtime: JSON of the section `runtime`.
        processes: number of processes, one per GPU.
        metrics: metrics of the last epoch.
        backbone: backbone.json, which describes the weights.

    Returns:
        The folder of the backbone.
    """
    import json

    from components.common.formats.backbone import BACKBONE
    from components.common.runs.step import step
    from components.common.training.launch import run_here
    from components.pretrain.params import Pretrain
    from components.pretrain.run import run

    with step("pretrain", root, Pretrain, params, {"shards": shards, "start": start}, runtime) as this:
        run_here("pretrain", run, {"shards": [shards], "start": json.loads(start).get("uri")}, this, processes)
    this.show({BACKBONE: backbone.path}, metrics)
    return this.out


@dsl.component(base_image="cpu", install_kfp_package=False)
def launch(
    shards: str,
    start: str,
    root: str,
    params: str,
    runtime: str,
    cluster: str,
    metrics: dsl.Output[dsl.Metrics],
    backbone: dsl.Output[dsl.Model],
) -> str:
    """Pretrains a backbone on several nodes, by a TrainJob of Kubeflow Trainer.

    Args:
        shards: folder of the shards.
        start: JSON of the starting point, from the component `begin`.
        root: parent folder of all outputs.
        params: JSON of the section `pretrain`.
        runtime: JSON of the section `runtime`.
        cluster: JSON of the description of the nodes (pipelines.resources.describe_nodes).
        metrics: metrics of the last epoch.
        backbone: backbone.json, which describes the weights.

    Returns:
        The folder of the backbone.
    """
    import json

    from components.common.formats.backbone import BACKBONE
    from components.common.runs.step import step
    from components.pretrain.params import Pretrain
    from components.pretrain.trainjob import run_on_nodes

    with step("pretrain", root, Pretrain, params, {"shards": shards, "start": start}, runtime) as this:
        run_on_nodes({"shards": [shards], "start": json.loads(start).get("uri")}, this.out, this.params, this.runtime, cluster)
    this.show({BACKBONE: backbone.path}, metrics)
    return this.out
