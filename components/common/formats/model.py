"""model.json and model.safetensors: a trained head.

Every model.json has `schema_version`, `task` (the head), `arch`, `size` (longer side of the input images in pixels), `bits` (per
input pixel), `normalisation` (mean and std of the input as fractions of its range), `preprocessing`, `inputs` and `sha256` (of the
weights); the rest is described by the head's serving.py. Files without `schema_version` are read as well: there, `size` of an
inversion was the side of the generated images, and `stored_size` that of the input.
"""

from typing import Any, TypedDict

from components.common.errors import UserError
from components.common.formats.documents import check_document, parse_json


class Common(TypedDict):
    """The entries of a model.json that all heads have."""

    schema_version: int
    task: str
    arch: str
    size: int
    bits: int
    preprocessing: dict[str, Any]
    inputs: dict[str, str]
    sha256: str


class External(TypedDict):
    """The entry `external` of a model.json that `predict` writes: the predictions are of another cohort than the training's."""

    model: str | None  # name and version in the registry, if it is from there
    training: dict[str, float | None]  # metrics.json of the model's evaluation, as a registered model carries it in `evaluation`
    seen: int | None  # number of images that are in the model's images.txt; None if there is none


DESCRIPTION = "model.json"
_PREPROCESSING = ("clip_percentile", "views")
WEIGHTS = "model.safetensors"
IMAGES = "images.txt"
"""One line per image of the training cohort, whatever its split, sorted: the first 16 hexadecimal digits of the SHA-256 of its pixels."""
SCHEMA_VERSION = 2


def parse_description(content: bytes, path: str, made_by: str) -> dict[str, Any]:
    """Parses a model.json of this or an earlier schema version; `path` and `made_by` are for the message.

    Raises:
        UserError: it is not JSON, or of a later version.
    """
    return upgrade_description(parse_json(content, path, made_by), path)


def preprocessing_of(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of preprocess that images need for a model, as far as its model.json has them."""
    known = description.get("preprocessing", {})
    return {"size": description["size"], "bits": description["bits"], **{name: known[name] for name in _PREPROCESSING if name in known}}


def upgrade_description(found: dict[str, Any], path: str) -> dict[str, Any]:
    """Brings the content of a model.json to this schema version; raises UserError if it is of a later one."""
    check_document(found, Common, path, "the head that wrote it", ())
    version = found.get("schema_version", 1)
    if version > SCHEMA_VERSION:
        raise UserError(f"{path}: has schema version {version}, this code reads up to {SCHEMA_VERSION}; use a newer version of the code")
    if version < SCHEMA_VERSION and "stored_size" in found:
        found["generator_size"], found["size"] = found["size"], found.pop("stored_size")
    return found
