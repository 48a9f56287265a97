"""register as a step of a pipeline."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def register(
    model: str, evaluation: str, root: str, params: str, min_auroc: float, takes_name: bool, registration: dsl.Output[dsl.Artifact]
) -> str:
    """Registers a model and decides on its alias.

    Args:
        model: folder of the model.
        evaluation: folder of its evaluation.
        root: folder of all outputs.
        params: JSON of the section `register`, but for `min_auroc`.
        min_auroc: a classifier's floor, which the pipeline itself looks at as well.
        takes_name: whether `register.name` is meant for this model; else it is registered under the name of its task.
        registration: registration.json: version, alias and why.

    Returns:
        The folder of the registration.
    """
    from components.common.runs.params import Register
    from components.common.runs.step import step
    from components.register.run import run

    inputs = {"model": model, "evaluation": evaluation}
    overrides = [f"register.min_auroc={min_auroc}", *([] if takes_name else ["register.name=null"])]
    with step("register", root, Register, params, inputs, overrides=overrides) as this:
        run(model=model, evaluation=evaluation, out=this.out, params=this.params)
    this.show("registration.json", registration.path)
    return this.out
