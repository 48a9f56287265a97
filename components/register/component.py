"""The Kubeflow component of `register`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def register(
    model: str, evaluation: str, root: str, params: str, min_auroc: float, takes_name: bool, registration: dsl.Output[dsl.Artifact]
) -> str:
    """Registers a model and decides on its alias.

    Args:
        model: folder of the model.
        evaluation: folder of its evaluation.
        root: parent folder of all outputs.
        params: JSON of the section `register`, without `min_auroc`.
        min_auroc: `register.min_auroc`, which the gate of the pipeline checks as well.
        takes_name: whether `register.name` applies to this model; otherwise the name follows from its head.
        registration: registration.json: version, alias, and the reasons for it.

    Returns:
        The folder of the registration.
    """
    from components.common.formats.registration import REGISTRATION
    from components.common.runs.params import Register
    from components.common.runs.step import step
    from components.register.run import run

    inputs = {"model": model, "evaluation": evaluation}
    overrides = [f"register.min_auroc={min_auroc}", *([] if takes_name else ["register.name=null"])]
    with step("register", root, Register, params, inputs, overrides=overrides) as this:
        run(model=model, evaluation=evaluation, out=this.out, params=this.params)
    this.show({REGISTRATION: registration.path})
    return this.out
