"""evaluate as a step of a pipeline."""

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
        predictions: folders of the models, the classifier's first.
        root: folder of all outputs.
        params: JSON of the section `evaluate`.
        metrics: macro averages with intervals; all others are in the report.
        roc: the ROC curve of all findings pooled.
        report: for readers.

    Returns:
        The folder of the evaluation, and the macro test AUROC of the classifier, 0 where it is not known. In conditions, kfp's
        local runs find no output of another name than `Output`.
    """
    from components.common.runs.params import Evaluate
    from components.common.runs.step import step
    from components.evaluate.pooled_roc import roc_points
    from components.evaluate.run import run

    with step("evaluate", root, Evaluate, params, {"predictions": predictions}) as this:
        run(predictions=predictions, out=this.out, params=this.params)
    metrics.metadata.update(this.metrics("_macro", "_macro_low", "_macro_high"))
    roc.log_roc_curve(*roc_points(predictions[0]))
    this.show("report.html", report.path)
    return (this.out, float(this.metrics().get("classify_test_auroc_macro", 0)))


@dsl.component(base_image="cpu", install_kfp_package=False)
def compare(cells: list[str], evaluate: str, study: str, metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]) -> str:
    """Compares the arms of a study, claim by claim, on one page.

    Args:
        cells: folders STUDY/CLAIM/CONDITION/ARM/SEED.
        evaluate: JSON of the section `evaluate`.
        study: JSON of the section `study`.
        metrics: of each arm, and its difference to the reference.
        page: for readers.

    Returns:
        The folder of the page.
    """
    from components.common.runs.params import Evaluate, Runtime
    from components.common.runs.step import Step, exit_codes
    from components.evaluate.params import Study
    from components.evaluate.run import study as run

    above = cells[0].rsplit("/", 4)[0]
    this = Step(Study.model_validate_json(study), Runtime(), f"{above}/page")
    with exit_codes("study"):
        run(cells=above, out=this.out, params=this.params, evaluate=Evaluate.model_validate_json(evaluate))
    metrics.metadata.update(this.metrics())
    this.show("study.html", page.path)
    return this.out
