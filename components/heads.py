"""The table of heads: what a pretrained backbone is fine-tuned for. docs/adding-a-head.md says how to add one."""

from dataclasses import dataclass

from components.classify.params import Classify
from components.common.runs.command import Input
from components.common.runs.params import Section
from components.detect.params import Detect
from components.invert.params import Invert


@dataclass(frozen=True)
class Head:
    """One head."""

    name: str
    params: type[Section]
    title: str
    help: str
    inputs: tuple[Input, ...] = ()


_INVERT_INPUTS = (
    Input("perceptual", "output folder of pretrain: the backbone of the perceptual loss (default: --backbone)", required=False),
    Input("judge", "output folder of pretrain: the backbone that measures feature distances; without it random weights", required=False),
    Input("generator", "output folder of an earlier invert, whose generator is used; without it one is trained", required=False),
)

HEADS = {
    head.name: head
    for head in (
        Head("classify", Classify, "Classification of findings", "fine-tune a classifier of findings"),
        Head("detect", Detect, "Detection of findings", "train a detector of findings with boxes"),
        Head("invert", Invert, "GAN inversion", "train a GAN and an encoder that inverts it", _INVERT_INPUTS),
    )
}
