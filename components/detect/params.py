"""Parameters of `detect`."""

from typing import Annotated, Literal

from pydantic import Field

from components.common.runs.params import Arch, Device, Fraction, NonNegative, Positive, Section, Seed


class Detect(Section):
    """Detection of findings with boxes."""

    arch: Arch = "resnet50"
    """Backbone; with --backbone it must be the architecture of that backbone."""
    detector: Literal["retinanet", "fasterrcnn"] = "retinanet"
    """torchvision's detectors, in their second versions."""
    classes: tuple[str, ...] = ()
    """Labels of the boxes to detect; none: all labels of the train split. Images in which a class is unknown are left out."""
    channels: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    """Channels of the feature pyramid and the heads."""
    batch_norm: Literal["train", "frozen"] = "train"
    """frozen: the batch norm of the backbone stays as pretrained, for batches of a few images. The default is the same with and
    without a backbone, so that the two differ in their weights only."""
    epochs: Positive = 50
    """Passes over the images of the train split whose boxes are known."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images per step."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW: linear warm-up, then a cosine."""
    weight_decay: NonNegative = 0.05
    """Weight decay of AdamW."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training patients whose images are used; smaller subsets are nested in larger ones."""
    augment: bool = True
    """Shift and scale the images slightly at random."""
    score_threshold: Fraction = 0.05
    """Detections with a lower score are dropped."""
    max_detections: Positive = 100
    """Number of detections kept per image, those with the highest scores."""
    seed: Seed = 0
    """Seed of the heads, the order of the images and the augmentation."""
    device: Device = "auto"
    """auto: a GPU if there is one."""
