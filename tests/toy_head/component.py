"""The Kubeflow component of `toy`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def toy(
    shards: str, backbone: str, root: str, params: str, runtime: str, metrics: dsl.Output[dsl.Metrics], model: dsl.Output[dsl.Model]
) -> str:
    """Fits a regression of mean brightness."""
    from components.toy.params import Toy
    from components.toy.run import run

    from components.common.formats.model import DESCRIPTION
    from components.common.runs.step import step

    with step("toy", root, Toy, params, {"shards": shards, "backbone": backbone}, runtime) as this:
        run(shards=[shards], backbone=backbone or None, out=this.out, params=this.params, runtime=this.runtime)
    this.show({DESCRIPTION: model.path}, metrics)
    return this.out
