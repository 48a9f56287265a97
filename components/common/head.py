"""The contract between a head and the frame that trains, evaluates, registers and serves it.

A head is a folder `components/NAME` with the modules below; `components/heads.py` is the table of heads.

| module | content |
|---|---|
| `params.py` | its section of params.yaml |
| `run.py` | `run(*, shards, out, params, runtime, backbone=None)`, which trains and writes the files of components/common/formats |
| `evaluation.py` | an `EvaluationModule`: from predictions to metrics, curves and a section of the report |
| `registration.py` | a `RegistrationModule`: the metric of the gate and the values of the model card `card.md` |
| `serving.py` | a `ServingModule`: the network of a model folder, ready for use |
| `component.py` | its Kubeflow component, a function NAME |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from components.common.runs.command import Input
from components.common.runs.params import Evaluate, Register, Section

if TYPE_CHECKING:  # the table of heads is read by the command line, which must not wait for these
    import pandas as pd
    import pyarrow as pa
    import torch
    from mlflow.models import ModelSignature

    from components.common.formats.shards import Pixels
    from components.common.statistics.differences import Difference
    from components.common.statistics.intervals import Interval
    from components.common.training.inference import InputImage

CONFIDENCE = 0.95
"""Confidence level of the gate."""


@dataclass(frozen=True)
class Head:
    """One row of the table."""

    name: str
    """Name of the folder, the section of params.yaml, the command, the DVC stage, the Kubeflow task and the MLflow experiment."""
    params: type[Section]
    title: str
    """Heading of its section in the report, in lower case."""
    help: str
    """Description of the command, for --help."""
    inputs: tuple[Input, ...] = ()
    """Inputs besides --shards and --backbone."""

    @cached_property
    def evaluation(self) -> "EvaluationModule":
        """Its module evaluation.py."""
        module: EvaluationModule = self._module("evaluation")
        return module

    @cached_property
    def registration(self) -> "RegistrationModule":
        """Its module registration.py."""
        module: RegistrationModule = self._module("registration")
        return module

    @cached_property
    def serving(self) -> "ServingModule":
        """Its module serving.py."""
        module: ServingModule = self._module("serving")
        return module

    def _module(self, name: str) -> Any:
        return import_module(f"components.{self.name}.{name}")


@dataclass(frozen=True)
class HeadOutput:
    """The output folder of a head, except for the rows of its predictions."""

    folder: str
    """For messages only, since it differs from place to place."""
    head: str
    description: dict[str, Any]
    """Content of model.json."""
    record: dict[str, Any]
    """Content of run.json."""
    history: dict[str, list[float]]
    """Columns of history.csv."""
    figures: dict[str, bytes]
    """PNG images by file name."""
    digests: dict[str, str]
    """SHA-256 of `predictions` and `model`."""

    def path(self, name: str) -> str:
        """Returns the path or URI of a file in the folder, for messages."""
        return f"{self.folder.rstrip('/')}/{name}"


class CsvTable(NamedTuple):
    """A CSV file with curves, for `dvc plots` and spreadsheets."""

    header: tuple[str, ...]
    """The first column names the curve: a finding, a label."""
    rows: Sequence[tuple[Any, ...]]


class Evaluation(Protocol):
    """The evaluation of one model."""

    @property
    def model(self) -> HeadOutput:
        """The model."""

    def metrics(self, prefix: str) -> dict[str, float]:
        """Returns flat numbers for metrics.json. Names begin with `prefix`, such as detect or detect_2; NaN where undefined."""

    def headline(self) -> "dict[str, Interval]":
        """Returns the numbers by which models of this head are compared side by side, in order, by a name for readers."""

    def curves(self) -> dict[str, CsvTable]:
        """Returns tables by file name, such as roc.csv; the same files and headers for every model of the head."""

    def sections(self) -> list[str]:
        """Returns HTML sections of the report: the headline first. evaluate/report.py adds differences, history and provenance."""

    def warnings(self) -> list[str]:
        """Returns sentences about what the numbers cannot show, for the log and the top of the report."""

    def compare(self, baseline: Any) -> "list[Difference]":
        """Returns paired differences to the evaluation of another model of this head.

        Raises:
            UserError: the two were not tested on the same images with the same targets; says how they differ.
        """


class EvaluationModule(Protocol):
    """The module evaluation.py of a head."""

    def read(self, table: "pa.Table", model: HeadOutput, params: Evaluate) -> Evaluation:
        """Evaluates the predictions of one model on the test split.

        Args:
            table: predictions.parquet with its common columns checked: one row per image, splits val and test, no patient in
                both, test not empty. Of the versions that the gate compares, only the test rows are given.
            model: everything else in the folder.
            params: resamples, confidence, seed, and so on.

        Raises:
            UserError: columns of the head are missing or impossible; names the file.
        """


@dataclass(frozen=True)
class Candidate:
    """A model to be registered: the outputs of a head and of evaluate, checked against each other."""

    model: str
    """Folder of the head's output."""
    evaluation: str
    """Folder of the evaluation."""
    head: str
    description: dict[str, Any]
    """Content of model.json."""
    metrics: dict[str, float | None]
    """Content of the evaluation's metrics.json."""
    record: dict[str, Any]
    """Content of the model's run.json."""
    training: dict[str, float | None]
    """Content of the model's metrics.json, if there is one."""
    min_positives: int
    """The parameter evaluate.min_positives of the evaluation."""
    test_predictions: "pa.Table"
    """Test rows of predictions.parquet."""
    inputs: dict[str, str]
    """SHA-256 by name."""
    upstream: dict[str, str]
    """MLflow run id by name."""


class Champion(NamedTuple):
    """The present champion, as far as the gate needs it."""

    predictions: "pa.Table"
    """Test rows of its predictions.parquet."""
    description: dict[str, Any]
    """Content of its model.json."""


class Floor(NamedTuple):
    """Whether a model may become the first champion."""

    passed: bool
    reason: str
    """The reason, as part of a sentence."""


class NotComparable(Exception):  # noqa: N818 - an answer rather than an error
    """Two versions were not tested on the same images with the same targets; the message says how they differ."""


class RegistrationModule(Protocol):
    """The module registration.py of a head."""

    METRIC: str
    """Metric in the evaluation's metrics.json by which models are compared; METRIC_low and METRIC_high hold its interval."""
    MEASURE: str
    """Its name for readers."""
    METRIC_TYPE: str
    """Its name in the Hugging Face Hub's list of metrics."""
    TASK_TYPE: str
    """The Hub's name of the task."""
    KIND: str
    """MLflow's type of the model."""
    FLOOR_PARAMETERS: tuple[str, ...]
    """Parameters of the section `register` that `floor` reads."""

    def floor(self, metrics: dict[str, float | None], settings: Register) -> Floor:
        """Decides whether a model may become champion when there is none."""

    def compare(self, new: Candidate, champion: Champion, settings: Register) -> "Interval":
        """Returns the metric of a new version minus that of the champion, paired, on the same test images.

        Raises:
            NotComparable: the two were not tested on the same.
        """

    def summary(self, description: dict[str, Any]) -> tuple[str, str]:
        """Returns what a model is, as the beginning of a sentence, and what it outputs."""

    def signature(self, description: dict[str, Any]) -> "ModelSignature":
        """Returns the signature of the packed model."""

    def is_plausible(self, answer: "pd.DataFrame") -> bool:
        """Whether an answer of the packed model has plausible values."""

    def card_values(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the values for the head's card.md, and `data`, `results` and `subgroups` for register/card.md."""


class Network(Protocol):
    """A trained model, ready for use."""

    size: int
    """Longer side of the input images, in pixels."""
    bits: int
    """Bits per input pixel."""
    labels: list[str]
    """Names of the findings or classes; empty if there are none."""

    def answer(self, images: "Sequence[InputImage]", options: dict[str, Any]) -> "pd.DataFrame":
        """Returns what a user of the packed model gets."""

    def columns(self, images: "Sequence[Pixels]", rows: "pa.Table", findings: list[str]) -> dict[str, Any]:
        """Returns the head's columns of predictions.parquet.

        Args:
            images: (H, W) each, as in shards.
            rows: those of the images in shards.
            findings: names of their labels.
        """

    def unlabelled(self, findings: list[str]) -> list[str]:
        """Returns the labels that cannot be evaluated, since a cohort has only these findings."""

    def counts(self, predictions: "pa.Table") -> dict[str, float]:
        """Counts what is known to be in the images, for the metrics of `predict`; `images_unknown` are those not to be evaluated."""


class ServingModule(Protocol):
    """The module serving.py of a head. A packed model carries a copy of it and of what it imports, but not of this file's heads."""

    REQUIRED: tuple[str, ...]
    """Keys of model.json without which the network cannot be built."""
    ONNX_OUTPUTS: tuple[str, ...]
    """Names of the outputs of the ONNX export; empty: no ONNX."""

    def load(self, description: dict[str, Any], weights: Path) -> Network:
        """Builds the network from model.json and model.safetensors.

        Raises:
            UserError: the weights do not fit the description.
        """

    def exportable(self, network: Any) -> "torch.nn.Module":
        """Returns the part of a network that is exported as ONNX; it takes (B, 1, size, size) in [0, 1]."""


def refuse_other_images(new: Sequence[str], champion: Sequence[str]) -> None:
    """Checks that two versions were tested on the same images, given by their ids.

    Raises:
        NotComparable: they were not.
    """
    if sorted(new) != sorted(champion):
        counts = f"{len(new)} and {len(champion)} images, {len(set(new) & set(champion))} in common"
        raise NotComparable(f"the champion was tested on other images ({counts}), so that the two cannot be compared")


def differences_to_champion(read: Callable[..., Any], new: Candidate, champion: Champion, settings: Register) -> "Mapping[str, Interval]":
    """Compares a new version with the champion as `evaluate --baseline` does.

    Args:
        read: `read` of the head's evaluation module.
        new: the version to be judged.
        champion: the present champion.
        settings: resamples and seed.

    Returns:
        Intervals of the differences by key.

    Raises:
        UserError: the two were not tested on the same.
    """
    params = Evaluate(resamples=settings.resamples, seed=settings.seed, confidence=CONFIDENCE)
    pairs = ((new.test_predictions, new.description), (champion.predictions, champion.description))
    evaluations = [read(rows, HeadOutput("", new.head, about, {}, {}, {}, {}), params) for rows, about in pairs]
    return {each.key: each.interval for each in evaluations[0].compare(evaluations[1])}
