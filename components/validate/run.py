"""Both steps of an external validation: `python -m components validate --model URI --raw DIR --out DIR`.

OUT/predictions is the output of `predict`, OUT/evaluation that of `evaluate`, whose report.html sets the cohort beside the training's.
"""

from components.common.runs import storage
from components.common.runs.params import Evaluate, Runtime
from components.evaluate import run as evaluation
from components.predict import run as prediction
from components.preprocess.params import Preprocess


def run(
    *,
    model: str,
    out: str,
    params: Preprocess,
    evaluate: Evaluate,
    runtime: Runtime,
    raw: str | None = None,
    shards: list[str] | None = None,
) -> None:
    """Scores and evaluates a labelled cohort.

    Args:
        model: `models:/NAME@ALIAS`, or the output folder of a head or of register.
        out: folder of both outputs.
        params: the section `preprocess`, for the layout of the raw folder.
        evaluate: the section `evaluate`.
        runtime: the section `runtime`.
        raw: folder of DICOM, PNG or JPEG files with labels.
        shards: output folders of preprocess instead of `raw`.

    Raises:
        UserError: as for `predict` and `evaluate`.
    """
    predictions = storage.join(out, "predictions")
    prediction.run(model=model, raw=raw, shards=shards, out=predictions, params=params, runtime=runtime, evaluate=evaluate)
    evaluation.run(predictions=[predictions], out=storage.join(out, "evaluation"), params=evaluate)
