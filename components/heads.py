"""The table of heads: what a pretrained backbone is fine-tuned for. docs/adding-a-head.md says how to add one."""

from typing import Any

from components.classify.params import Classify
from components.common.errors import UserError
from components.common.head import Head
from components.common.runs.command import Input
from components.detect.params import Detect
from components.invert.params import Invert

_INVERT_INPUTS = (
    Input("perceptual", "output folder of pretrain: the backbone of the perceptual loss (default: --backbone)", required=False),
    Input("judge", "output folder of pretrain: the backbone that measures feature distances; without it random weights", required=False),
    Input("generator", "output folder of an earlier invert, whose generator is used; without it one is trained", required=False),
)

HEADS = {
    head.name: head
    for head in (
        Head("classify", Classify, "classification of findings", "fine-tune a classifier of findings"),
        Head("detect", Detect, "detection of findings", "train a detector of findings with boxes"),
        Head("invert", Invert, "GAN inversion", "train a GAN and an encoder that inverts it", _INVERT_INPUTS),
    )
}
ANY_HEAD = " or ".join(filter(None, [", ".join(list(HEADS)[:-1]), list(HEADS)[-1]]))
"""The heads in a sentence: classify, detect or invert."""


def check_description(description: dict[str, Any], path: str) -> str:
    """Checks that a model.json is of a known head and complete; those of early versions of this project may not be.

    Args:
        description: its content.
        path: its name, for the message.

    Returns:
        The head.

    Raises:
        UserError: it is not.
    """
    head = description.get("task")
    if head not in HEADS:
        raise UserError(f"{path}: is of a {head} model; give --model the output folder of {ANY_HEAD}")
    if "sha256" not in description:
        raise UserError(f"{path}: has no weights, only predictions to evaluate (mode {description.get('mode')}); train another mode")
    if missing := [name for name in HEADS[head].serving.REQUIRED if name not in description]:
        raise UserError(f"{path}: lacks {missing[0]}, without which the network cannot be built; run {head} again")
    return str(head)
