"""Loading of the model to be served: from MLflow's registry, or from a folder."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, IMAGES, WEIGHTS, External, parse_description
from components.common.formats.predictions import PREDICTIONS, parse_predictions
from components.common.formats.registration import REGISTRATION
from components.common.head import HeadOutput, Network
from components.common.runs import storage
from components.common.runs.params import Evaluate
from components.common.runs.registered_models import NOTE, SCHEMES, download
from components.heads import HEADS, check_description

PLACES = ("", "artifacts", "model/artifacts")
"""Where model.json is in the output of a head, in a packed model, and in the output of register."""


class Source(NamedTuple):
    """A model, ready for use."""

    head: str
    network: Network
    description: dict[str, Any]  # content of model.json
    digest: str  # SHA-256 of model.json
    external: External
    images: frozenset[str] | None  # lines of images.txt


def read(uri: str, evaluate: Evaluate | None = None) -> Source:
    """Reads a model.

    Args:
        uri: `models:/NAME@ALIAS` or another address of MLflow, or the output folder of a head or of register.
        evaluate: how to evaluate the predictions in the output folder of a head; None: they are not evaluated. Other models carry
            their evaluation.

    Raises:
        UserError: there is no such model, or it is not complete.
    """
    with _folder(uri) as folder:
        place = next((at for name in PLACES if storage.exists(at := storage.join(folder, *name.split("/"), DESCRIPTION))), None)
        if place is None:
            folders = f"the output folder of {', '.join(HEADS)} or register"
            raise UserError(f"{uri}: has no {DESCRIPTION}; give --model models:/NAME@champion or {folders}")
        content = storage.read(place)
        description = parse_description(content, place, "register")
        head = check_description(description, f"{uri}: {DESCRIPTION}")
        with tempfile.TemporaryDirectory() as scratch:
            weights = Path(scratch, WEIGHTS)
            weights.write_bytes(storage.read(place.removesuffix(DESCRIPTION) + WEIGHTS))
            if storage.digest_file(weights) != description["sha256"]:
                raise UserError(f"{uri}: {WEIGHTS} does not match {DESCRIPTION}; register or train the model again")
            network = HEADS[head].serving.load(description, weights)
        training = description.pop("evaluation", {})
        if evaluate and not training:
            training = _evaluated(head, description, place.removesuffix(DESCRIPTION), evaluate)
        external: External = {"model": _version(folder), "training": training, "seen": None}
        images = place.removesuffix(DESCRIPTION) + IMAGES
        known = frozenset(storage.read(images).decode().split()) if storage.exists(images) else None
        return Source(head, network, description, storage.digest(content), external, known)


def _evaluated(head: str, description: dict[str, Any], folder: str, params: Evaluate) -> dict[str, float | None]:
    """Evaluates the predictions beside a model.json; returns no metrics if there are none."""
    path = storage.join(folder, PREDICTIONS)
    if not storage.exists(path):
        return {}
    table = parse_predictions(storage.read(path), path)
    metrics = HEADS[head].evaluation.read(table, HeadOutput(folder, head, description, {}, {}, {}, {}), params).metrics(head)
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _version(folder: str) -> str | None:
    """Returns name and version of a registered model: in a note of MLflow beside a download, or in the output of register."""
    for name, keys in ((NOTE, ("model_name", "model_version")), (REGISTRATION, ("name", "version"))):
        if storage.exists(path := storage.join(folder, name)):
            found = yaml.safe_load(storage.read(path))  # JSON is YAML
            return f"{found[keys[0]]} version {found[keys[1]]}"
    return None


@contextmanager
def _folder(uri: str) -> Iterator[str]:
    """Yields a folder with the model, downloaded if it is in MLflow."""
    if not uri.startswith(SCHEMES):
        yield uri
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(uri, Path(scratch))
        yield scratch
