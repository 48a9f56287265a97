"""The task `invert`: PSNR of reconstructions, which must be higher than the mean training image's.

PSNR, not the feature distance: it is the same measure whoever is the judge, so that any two versions compare.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.invert import evaluation
from components.invert import serving as network
from components.invert.inverter import ERRORS
from components.invert.metrics import NAMES
from components.register.candidate import Candidate
from components.register.gate import Floor, NotComparable, refuse_other_images
from components.register.markdown import counted, interval, table
from components.register.paired import differences
from components.register.task import Champion

METRIC = "invert_test_psnr"
MEASURE = "PSNR"
KIND = "encoder"
NEEDED: tuple[str, ...] = network.NEEDED
ONNX_OUTPUTS: tuple[str, ...] = ("latents",)
GAIN = "invert_test_psnr_gain"
ROWS = {"train_images": "images trained on", "invert_test_images": "test images", "invert_test_patients": "test patients"}


def floor(metrics: dict[str, float | None], settings: Register) -> Floor:
    """Better than knowing no image: the interval of the PSNR above the mean training image's must lie above 0."""
    gain, low = metrics.get(GAIN), metrics.get(f"{GAIN}_low")
    if gain is None or low is None:
        return Floor(False, "how much closer reconstructions are than the mean training image is not known")
    shown = f"by which its PSNR exceeds that of the mean training image ({gain:.2f} dB), {low:.2f} dB"
    return Floor(low > 0, f"the lower end of the interval {shown}, is {'' if low > 0 else 'not '}above 0")


def compare(new: Candidate, champion: Champion, settings: Register) -> Interval:
    """As `evaluate --baseline` compares them.

    Raises:
        NotComparable: the test images, or the size that they are reconstructed in, differ.
    """
    mine, theirs = new.description["size"], champion.description["size"]
    if mine != theirs:
        raise NotComparable(f"the champion reconstructs images of {theirs} pixels a side, not of {mine}")
    refuse_other_images(new.test_predictions["image_id"].to_pylist(), champion.predictions["image_id"].to_pylist())
    return next(each.interval for each in differences(evaluation.read, new, champion, settings) if each.key == "psnr")


def summary(about: dict[str, Any]) -> tuple[str, str]:
    """For the registry's page."""
    return f"{about['arch']} encoder into the latents of a StyleGAN2 of {about['size']} pixels", "latents in W+ of each image"


def signature(about: dict[str, Any]) -> ModelSignature:
    """Latents and errors; the option adds a column."""
    columns: list[Any] = [ColSpec(Array(Array(DataType.float)), "latents"), *(ColSpec(DataType.float, name) for name in ERRORS)]
    return ModelSignature(outputs=Schema(columns), params=ParamSchema([ParamSpec(network.RECONSTRUCTIONS, DataType.boolean, False)]))


def sensible(answer: pd.DataFrame) -> bool:
    """Finite numbers."""
    return bool(np.isfinite(np.stack(answer["latents"].tolist())).all() and np.isfinite(answer[list(ERRORS)].to_numpy()).all())


def exportable(about: dict[str, Any], weights: Path) -> tuple[torch.nn.Module, int]:
    """The encoder."""
    return network.load(about, weights).exportable(), int(about["stored_size"])


def slots(candidate: Candidate) -> dict[str, Any]:
    """For cards/invert.md and cards/rest.md."""
    about = candidate.description
    refined = f"then refined by {about['refine_steps']} steps of gradient descent on the loss of the training"
    return {
        "arch": about["arch"],
        "size": about["size"],
        "stored": about["stored_size"],
        "dim": about["latent_dim"],
        "refined": refined if about["refine_steps"] else "and are not refined",
        "unrefined": ", not refined" if about["refine_steps"] else "",
        "judge": about["judge"],
        "perceptual": about["perceptual"],
        "data": counted(candidate, ROWS),
        "results": _results(candidate.metrics),
        "subgroups": f"Feature distances are taken in {about['judge']}. Subgroups were not told apart.",
    }


def _results(metrics: dict[str, float | None]) -> str:
    rows = [(text, interval(metrics, f"invert_test_{name}")) for name, text in NAMES.items()]
    kid = {"kid_samples": "KID of generated images", "kid_reconstructions": "KID of reconstructions"}
    rows += [(text, interval(metrics, f"invert_test_{name}", 4)) for name, text in kid.items()]
    return table(("measure", "value (95 % interval)"), rows)
