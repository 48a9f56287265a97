"""`backbone.json` and `backbone.safetensors`: a pretrained ResNet.

The weights have torchvision's names, no head, and one input channel in `conv1`; the document describes them and holds their SHA-256.
"""

from typing import Any, TypedDict

from components.common.errors import UserError
from components.common.formats.documents import check_document

BACKBONE = "backbone.json"
BACKBONE_WEIGHTS = "backbone.safetensors"


class Normalisation(TypedDict):
    """Mean and standard deviation that the input was normalised with, as fractions of its range."""

    mean: float
    std: float


class Description(TypedDict):
    """Content of backbone.json before the digest of the weights is added."""

    arch: str
    method: str  # the preset of pretrain
    epochs: int
    images: int  # number of training images
    size: int  # longer side of the training images, in pixels
    normalisation: Normalisation
    inputs: dict[str, str]  # SHA-256 by name of input


class Backbone(Description):
    """The content of a backbone.json."""

    sha256: str  # digest of the weights


def check_backbone(content: dict[str, Any], path: str) -> Backbone:
    """Checks that a description has what is needed to load the weights; `path` is its name for the message.

    Raises:
        UserError: an entry is missing or damaged.
    """
    found = check_document(content, Backbone, path, "pretrain", ("arch", "normalisation", "sha256"))
    if found["normalisation"]["std"] <= 0:
        raise UserError(f"{path}: normalisation.std is {found['normalisation']['std']}, not a positive number; run pretrain again")
    return found
