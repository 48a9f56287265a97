"""The contract between what registers any model and classify.py, detect.py and invert.py."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
import torch
from mlflow.models import ModelSignature

from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.heads import HEADS
from components.register.candidate import Candidate
from components.register.gate import Floor


class Champion(NamedTuple):
    """What is known of the present champion."""

    predictions: pa.Table
    """Its test rows of predictions.parquet."""
    description: dict[str, Any]
    """Content of its model.json."""


class Task(Protocol):
    """A module of a task."""

    METRIC: str
    """In the evaluation's metrics.json, by which models are compared; its interval lies in METRIC_low and METRIC_high."""
    MEASURE: str
    """Its name for readers."""
    KIND: str
    """Of model, for MLflow."""
    NEEDED: tuple[str, ...]
    """Keys of model.json without which the network cannot be built."""
    ONNX_OUTPUTS: tuple[str, ...]
    """Names of what the network gives as ONNX; none: there is no ONNX."""

    def floor(self, metrics: dict[str, float | None], settings: Register) -> Floor:
        """Whether a model may become champion when there is none."""

    def compare(self, new: Candidate, champion: Champion, settings: Register) -> Interval:
        """The metric of a new version minus the champion's, paired, on the same test images.

        Raises:
            NotComparable: the two were not tested on the same; the message says how they differ.
        """

    def summary(self, about: dict[str, Any]) -> tuple[str, str]:
        """What the model of a model.json is, and what it gives, each the beginning or part of a sentence."""

    def signature(self, about: dict[str, Any]) -> ModelSignature:
        """Of the packed model."""

    def sensible(self, answer: pd.DataFrame) -> bool:
        """Whether an answer of the packed model is what it should be."""

    def exportable(self, about: dict[str, Any], weights: Path) -> tuple[torch.nn.Module, int]:
        """What becomes ONNX, and the side of the square images that it takes."""

    def slots(self, candidate: Candidate) -> dict[str, Any]:
        """What the card's template (cards/TASK.md) asks for, and `data`, `results` and `subgroups` of cards/rest.md."""


TASKS: dict[str, Any] = {name: import_module(f"components.{name}.registration") for name in HEADS}
