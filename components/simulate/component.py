"""The Kubeflow component of `simulate`."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def simulate(root: str, params: str) -> str:
    """Simulates a cohort of phantom radiographs.

    Args:
        root: parent folder of all outputs.
        params: JSON of the section `simulate`.

    Returns:
        The folder of the cohort.
    """
    from components.common.runs.step import step
    from components.simulate.params import Simulate
    from components.simulate.run import run

    with step("simulate", root, Simulate, params, {}) as this:
        run(out=this.out, params=this.params)
    return this.out
