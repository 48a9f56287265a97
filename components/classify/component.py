"""classify as a step of a pipeline."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def classify(shards: str, backbone: str, root: str, params: str, metrics: dsl.Output[dsl.Metrics], model: dsl.Output[dsl.Model]) -> str:
    """Fine-tunes a classifier.

    Args:
        shards: folder of the shards.
        backbone: folder of the backbone; empty: from scratch.
        root: folder of all outputs.
        params: JSON of the section `classify`.
        metrics: on the validation split.
        model: model.json, which describes the weights.

    Returns:
        The folder of the model and its predictions.
    """
    from components.classify.run import run
    from components.common.runs.step import step

    with step("classify", root, {"classify": params}, {"shards": shards, "backbone": backbone}) as this:
        run(shards=[shards], backbone=backbone or None, out=this.out, params=this.params)
    metrics.metadata.update(this.metrics())
    this.show("model.json", model.path)
    return this.out
