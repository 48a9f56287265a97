"""Where the model comes from: MLflow's registry, or a folder."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from components.common import storage
from components.common.errors import UserError
from components.register.networks import Classifier, classifier
from components.register.registry import download

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
PLACES = ("", "artifacts", "model/artifacts")
"""Of model.json, in the output of classify, in a packed model, and in the output of register."""
SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")


class Source(NamedTuple):
    """A model, ready to be used."""

    network: Classifier
    description: dict[str, Any]
    """Content of model.json."""
    digest: str
    """SHA-256 of that."""


def read(uri: str) -> Source:
    """Reads a model.

    Args:
        uri: `models:/NAME@ALIAS` and other addresses of MLflow, or the output folder of classify or register.

    Raises:
        UserError: there is no such model, or it is not a classifier.
    """
    with _folder(uri) as folder:
        place = next((at for name in PLACES if storage.exists(at := storage.join(folder, *name.split("/"), DESCRIPTION))), None)
        if place is None:
            raise UserError(f"{uri}: has no {DESCRIPTION}; give --model models:/NAME@champion or the output folder of classify or register")
        content = storage.read(place)
        description = json.loads(content)
        if description.get("task") != "classify":
            raise UserError(f"{uri}: is a {description.get('task')} model; predict scores with models of classify")
        with tempfile.TemporaryDirectory() as scratch:
            weights = Path(scratch, WEIGHTS)
            weights.write_bytes(storage.read(place.removesuffix(DESCRIPTION) + WEIGHTS))
            if storage.digest_file(weights) != description["sha256"]:
                raise UserError(f"{uri}: {WEIGHTS} does not match {DESCRIPTION}; register or train the model again")
            return Source(classifier(description, weights), description, storage.digest(content))


@contextmanager
def _folder(uri: str) -> Iterator[str]:
    if not uri.startswith(SCHEMES):
        yield uri
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(uri, Path(scratch))
        yield scratch
