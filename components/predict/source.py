"""Where the model comes from: MLflow's registry, or a folder."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from components.classify import serving as classify
from components.common.errors import UserError
from components.common.runs import storage
from components.common.training.inference import Predictor
from components.detect import serving as detect
from components.invert import serving as invert
from components.register.candidate import HEADS, check_description
from components.register.registry import download

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
PLACES = ("", "artifacts", "model/artifacts")
"""Of model.json, in the output of a head, in a packed model, and in the output of register."""
NETWORKS: dict[str, Any] = {"classify": classify, "detect": detect, "invert": invert}
SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")


class Source(NamedTuple):
    """A model, ready to be used."""

    task: str
    network: Predictor
    description: dict[str, Any]
    """Content of model.json."""
    digest: str
    """SHA-256 of that."""


def read(uri: str) -> Source:
    """Reads a model.

    Args:
        uri: `models:/NAME@ALIAS` and other addresses of MLflow, or the output folder of classify, detect, invert or register.

    Raises:
        UserError: there is no such model, or it is not complete.
    """
    with _folder(uri) as folder:
        place = next((at for name in PLACES if storage.exists(at := storage.join(folder, *name.split("/"), DESCRIPTION))), None)
        if place is None:
            folders = f"the output folder of {HEADS.replace(' or', ',')} or register"
            raise UserError(f"{uri}: has no {DESCRIPTION}; give --model models:/NAME@champion or {folders}")
        content = storage.read(place)
        description = json.loads(content)
        task = check_description(description, f"{uri}: {DESCRIPTION}", {name: network.NEEDED for name, network in NETWORKS.items()})
        with tempfile.TemporaryDirectory() as scratch:
            weights = Path(scratch, WEIGHTS)
            weights.write_bytes(storage.read(place.removesuffix(DESCRIPTION) + WEIGHTS))
            if storage.digest_file(weights) != description["sha256"]:
                raise UserError(f"{uri}: {WEIGHTS} does not match {DESCRIPTION}; register or train the model again")
            return Source(task, NETWORKS[task].load(description, weights), description, storage.digest(content))


@contextmanager
def _folder(uri: str) -> Iterator[str]:
    if not uri.startswith(SCHEMES):
        yield uri
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(uri, Path(scratch))
        yield scratch
