"""register as a step of a pipeline."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def register(model: str, evaluation: str, root: str, params: str, min_auroc: float, registration: dsl.Output[dsl.Artifact]) -> str:
    """Registers a classifier and decides on its alias.

    Args:
        model: folder of the classifier.
        evaluation: folder of its evaluation.
        root: folder of all outputs.
        params: JSON of the section `register`, but for `min_auroc`.
        min_auroc: the floor, which the pipeline itself looks at as well.
        registration: registration.json: version, alias and why.

    Returns:
        The folder of the registration.
    """
    from components.pipeline.step import step
    from components.register.run import run

    inputs = {"model": model, "evaluation": evaluation}
    with step("register", root, {"register": params}, inputs, [f"register.min_auroc={min_auroc}"]) as this:
        run(model=model, evaluation=evaluation, out=this.out, params=this.params)
    this.show("registration.json", registration.path)
    return this.out
