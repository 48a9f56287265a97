"""Loading of the model to be served: from MLflow's registry, or from a folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, WEIGHTS, parse_description
from components.common.head import Network
from components.common.runs import storage
from components.common.runs.registered_models import SCHEMES, download
from components.heads import HEADS, check_description

PLACES = ("", "artifacts", "model/artifacts")
"""Where model.json is in the output of a head, in a packed model, and in the output of register."""


class Source(NamedTuple):
    """A model, ready for use."""

    head: str
    network: Network
    description: dict[str, Any]  # content of model.json
    digest: str  # SHA-256 of model.json


def read(uri: str) -> Source:
    """Reads a model.

    Args:
        uri: `models:/NAME@ALIAS` or another address of MLflow, or the output folder of a head or of register.

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
            return Source(head, HEADS[head].serving.load(description, weights), description, storage.digest(content))


@contextmanager
def _folder(uri: str) -> Iterator[str]:
    """Yields a folder with the model, downloaded if it is in MLflow."""
    if not uri.startswith(SCHEMES):
        yield uri
        return
    with tempfile.TemporaryDirectory() as scratch:
        download(uri, Path(scratch))
        yield scratch
