"""The Kubeflow components of `evaluate` and `evaluate study`."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def evaluate(
    predictions: list[str],
    root: str,
    params: str,
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
) -> NamedTuple("Outputs", [("folder", str), ("Output", float)]):  # type: ignore[valid-type]
    """Evaluates models on the test split.

    Args:
        predictions: folders of the models, that of the classifier first.
        root: parent folder of all outputs.
        params: JSON of the section `evaluate`.
        metrics: macro averages with intervals; the report has all others.
        roc: ROC curve pooled over all findings.
        report: report.html.

    Returns:
        The folder of the evaluation, and the macro test AUROC of the classifier, 0 if it is undefined. It is named `Output` since
        conditions in local runs of kfp find no other output.
    """
    from components.common.formats.pages import REPORT
    from components.common.runs.params import Evaluate
    from components.common.runs.step import step
    from components.evaluate.pooled_roc import roc_points
    from components.evaluate.run import run

    with step("evaluate", root, Evaluate, params, {"predictions": predictions}) as this:
        run(predictions=predictions, out=this.out, params=this.params)
    this.show({REPORT: report.path}, metrics, ("_macro", "_macro_low", "_macro_high"))
    roc.log_roc_curve(*roc_points(predictions[0]))
    return (this.out, float(this.metrics().get("classify_test_auroc_macro", 0)))


@dsl.component(base_image="cpu", install_kfp_package=False)
def compare(cells: list[str], evaluate: str, study: str, metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]) -> str:
    """Compares the arms of a study, claim by claim, on one page.

    Args:
        cells: folders STUDY/CLAIM/CONDITION/ARM/SEED.
        evaluate: JSON of the section `evaluate`.
        study: JSON of the section `study`.
        metrics: metrics of each arm and differences to the reference.
        page: study.html.

    Returns:
        The folder of the page.
    """
    from components.common.formats.pages import STUDY
    from components.common.runs.params import Evaluate
    from components.common.runs.step import step
    from components.evaluate.params import Study
    from components.evaluate.run import study as run

    folder = cells[0].rsplit("/", 4)[0]
    with step("study", folder, Study, study, {}, out=f"{folder}/page") as this:
        run(cells=folder, out=this.out, params=this.params, evaluate=Evaluate.model_validate_json(evaluate))
    this.show({STUDY: page.path}, metrics)
    return this.out
