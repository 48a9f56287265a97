"""The Kubeflow component of `predict`."""

from kfp import dsl


@dsl.component(base_image="gpu", install_kfp_package=False)
def predict(
    shards: str,
    model: str,
    params: str,
    runtime: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Scores images with a version of a registered model; the output is part of the record of what that version has scored.

    Args:
        shards: folder of the shards, of images that the version has not scored.
        model: JSON of the version, from the component `begin_scoring`.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.
        metrics: counts of files and images.
        report: report.html.

    Returns:
        The folder of the predictions.
    """
    import json

    from components.common.formats.pages import REPORT
    from components.common.runs.step import step
    from components.predict.run import run
    from components.preprocess.params import Preprocess

    known = json.loads(model)
    with step("predict", known["record"], Preprocess, params, {"shards": shards, "model": known["uri"]}, runtime) as this:
        run(model=known["uri"], shards=[shards], out=this.out, params=this.params, runtime=this.runtime)
    this.show({REPORT: report.path}, metrics)
    return this.out
