"""The Kubeflow component of `monitor`."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def monitor(
    predictions: str,
    model: str,
    reference: str,
    root: str,
    params: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Compares scored images with the reference of the model; an alarm does not make the step fail.

    Args:
        predictions: folder of the predictions.
        model: JSON of the version of the model, from the component `begin_scoring`.
        reference: SHA-256 of its reference; empty if there is none, so that nothing is compared.
        root: parent folder of all outputs.
        params: JSON of the section `monitor`.
        metrics: statistics, and whether there is an alarm.
        report: report.html.

    Returns:
        The folder of the comparison.
    """
    import json

    from components.common.formats.pages import REPORT
    from components.common.runs.step import step
    from components.monitor.params import Monitor
    from components.monitor.run import run

    with step("monitor", root, Monitor, params, {"predictions": predictions, "model": model, "reference": reference}) as this:
        uri = json.loads(model)["uri"] if reference else None
        run(reference=uri, predictions=predictions, out=this.out, params=this.params)
    this.show({REPORT: report.path}, metrics)
    return this.out
