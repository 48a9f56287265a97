"""Parameters of `classify`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.common.runs.params import Arch, Device, NonNegative, Positive, Section, Seed


class Classify(Section):
    """Multi-label classification."""

    arch: Arch = "resnet50"
    """Backbone; with --backbone it must be the architecture of that backbone."""
    mode: Literal["finetune", "linear", "knn"] = "finetune"
    """finetune: all weights are trained. linear: logistic regressions on features of the frozen backbone. knn: a vote of the nearest
    training images, on the same features. The last two have no epochs; of the parameters below they read batch_size,
    label_fraction, positive_rate, seed and device, linear also tta_flip."""
    epochs: Positive = 50
    """Passes over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images per step; fewer if the train split has fewer."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of AdamW: linear warm-up, then a cosine."""
    weight_decay: NonNegative = 1e-2
    """Weight decay of AdamW."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from the head to layer4, from layer4 to layer3, and so on down; 1: the same rate everywhere."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training patients whose images are used: stratified by finding, smaller subsets nested in larger ones; the
    seed decides which."""
    positive_rate: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default={})
    """Finding -> fraction of positives among its training labels; labels are made unknown, patient by patient, until it is reached."""
    loss: Literal["bce", "weighted_bce", "focal", "logit_adjustment"] = "bce"
    """bce: binary cross-entropy; weighted_bce: the positives and the negatives of a finding have the same total weight; focal: easy
    images have less weight (Lin et al. 2017); logit_adjustment: logits are shifted by those of the prior while training (Menon et
    al. 2021)."""
    focal_gamma: NonNegative = 2.0
    """gamma of the focal loss; 0 gives bce."""
    adjustment: NonNegative = 1.0
    """tau of logit_adjustment; 0 gives bce."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Early stopping: number of epochs without a better validation AUROC; 0: never."""
    tta_flip: bool = False
    """Predict the mean over an image and its mirror image. Off by default, since a chest is not symmetric."""
    seed: Seed = 0
    """Seed of the head, the order of the images and the augmentation."""
    device: Device = "auto"
    """auto: a GPU if there is one."""

    @model_validator(mode="after")
    def _mode_takes_the_others(self) -> "Classify":
        if self.mode != "finetune" and self.loss != "bce":
            raise ValueError(f"mode {self.mode} takes no loss; set mode: finetune, or loss: bce")
        if self.mode == "knn" and self.tta_flip:
            raise ValueError("mode knn takes no tta_flip; set it to false")
        return self
