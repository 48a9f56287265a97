"""The Kubeflow component of `toy`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def toy(
    shards: str,
    backbone: str,
    root: str,
    params: str,
    runtime: str,
    processes: int,
    metrics: dsl.Output[dsl.Metrics],
    model: dsl.Output[dsl.Model],
) -> str:
    """Fits a regression of mean brightness."""
    from components.toy.params import Toy
    from components.toy.run import run

    from components.common.formats.model import DESCRIPTION
    from components.common.runs.step import step
    from components.common.training.launch import run_here

    with step("toy", root, Toy, params, {"shards": shards, "backbone": backbone}, runtime) as this:
        run_here("toy", run, {"shards": [shards], "backbone": backbone or None}, this, processes)
    this.show({DESCRIPTION: model.path}, metrics)
    return this.out
