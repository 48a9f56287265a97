"""Registration of the head `invert`: PSNR of reconstructions, which must be higher than that of the mean training image.

PSNR does not depend on the judge, as the feature distance does, so that any two versions can be compared.
"""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from components.common.head import Candidate, Champion, Floor, NotComparable, differences_to_champion, refuse_other_images
from components.common.html.markdown import counted, interval, table
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.invert import evaluation
from components.invert import serving as network
from components.invert.inverter import ERRORS
from components.invert.metrics import NAMES

METRIC = "invert_test_psnr"
MEASURE = "PSNR"
METRIC_TYPE = "psnr"
TASK_TYPE = "image-feature-extraction"
KIND = "encoder"
FLOOR_PARAMETERS: tuple[str, ...] = ()
GAIN = "invert_test_psnr_gain"
ROWS = {"train_images": "images trained on", "invert_test_images": "test images", "invert_test_patients": "test patients"}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """Requires that the interval of the PSNR gain over the mean training image lies above 0."""
    gain, low = metrics.get(GAIN), metrics.get(f"{GAIN}_low")
    if gain is None or low is None:
        return Floor(False, "how much closer reconstructions are than the mean training image is not known")
    shown = f"by which its PSNR exceeds that of the mean training image ({gain:.2f} dB), {low:.2f} dB"
    return Floor(low > 0, f"the lower end of the interval {shown}, is {'' if low > 0 else 'not '}above 0")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """Compares as `evaluate --baseline` does."""
    mine, theirs = new.description["generator_size"], champion.description["generator_size"]
    if mine != theirs:
        raise NotComparable(f"the champion reconstructs images of {theirs} pixels a side, not of {mine}")
    refuse_other_images(new.test_predictions["image_id"].to_pylist(), champion.predictions["image_id"].to_pylist())
    return differences_to_champion(evaluation.read, new, champion, settings)["psnr"]


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """Returns what the model is and what it outputs, for the page of the registry."""
    return f"{about['arch']} encoder into the latents of a StyleGAN2 of {about['generator_size']} pixels", "latents in W+ of each image"


def signature(about: dict[str, Any]) -> ModelSignature:
    """Returns the columns of latents and errors; the option adds a column."""
    columns: list[Any] = [ColSpec(Array(Array(DataType.float)), "latents"), *(ColSpec(DataType.float, name) for name in ERRORS)]
    return ModelSignature(outputs=Schema(columns), params=ParamSchema([ParamSpec(network.RECONSTRUCTIONS, DataType.boolean, False)]))


def is_plausible(answer: pd.DataFrame) -> bool:
    """Whether all numbers are finite."""
    return bool(np.isfinite(np.stack(answer["latents"].tolist())).all() and np.isfinite(answer[list(ERRORS)].to_numpy()).all())


def card_values(candidate: Candidate) -> dict[str, Any]:
    """Returns the values for card.md and register/card.md."""
    about = candidate.description
    refined = f"then refined by {about['refine_steps']} steps of gradient descent on the loss of the training"
    return {
        "arch": about["arch"],
        "size": about["generator_size"],
        "stored": about["size"],
        "dim": about["latent_dim"],
        "refined": refined if about["refine_steps"] else "and are not refined",
        "unrefined": ", not refined" if about["refine_steps"] else "",
        "judge": about["judge"],
        "perceptual": about["perceptual"],
        "data": counted({**candidate.metrics, **candidate.training}, ROWS),
        "results": _results(candidate.metrics),
        "subgroups": f"Feature distances are taken in {about['judge']}. There was no subgroup analysis.",
    }


def _results(metrics: dict[str, float | None]) -> str:
    rows = [(text, interval(metrics, f"invert_test_{name}")) for name, text in NAMES.items()]
    kid = {"kid_samples": "KID of generated images", "kid_reconstructions": "KID of reconstructions"}
    rows += [(text, interval(metrics, f"invert_test_{name}", 4)) for name, text in kid.items()]
    return table(("measure", "value (95 % interval)"), rows)
