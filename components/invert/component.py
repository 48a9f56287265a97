"""The Kubeflow component of `invert`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def invert(
    shards: str,
    backbone: str,
    root: str,
    params: str,
    runtime: str,
    processes: int,
    metrics: dsl.Output[dsl.Metrics],
    model: dsl.Output[dsl.Model],
) -> str:
    """Trains a GAN and an encoder that inverts it.

    Args:
        shards: folder of the shards.
        backbone: folder of the backbone; empty: train from scratch.
        root: parent folder of all outputs.
        params: JSON of the section `invert`.
        runtime: JSON of the section `runtime`.
        processes: number of processes, one per GPU.
        metrics: metrics on the validation split.
        model: model.json, which describes the weights.

    Returns:
        The folder of the model and its predictions.
    """
    from components.common.formats.model import DESCRIPTION
    from components.common.runs.step import step
    from components.common.training.launch import run_here
    from components.invert.params import Invert
    from components.invert.run import run

    with step("invert", root, Invert, params, {"shards": shards, "backbone": backbone}, runtime) as this:
        run_here("invert", run, {"shards": [shards], "backbone": backbone or None}, this, processes)
    this.show({DESCRIPTION: model.path}, metrics)
    return this.out
