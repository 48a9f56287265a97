"""The classifier: a backbone, a linear head, and a loss that knows what it does not know."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from components.common import backbone


def attach_head(resnet: torchvision.models.ResNet, findings: int) -> torchvision.models.ResNet:
    """Puts a linear layer with `findings` logits where torchvision has it (`fc`)."""
    resnet.fc = nn.Linear(backbone.width(resnet), findings)
    return resnet


def masked_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy over the known labels.

    Args:
        logits: (B, findings).
        targets: (B, findings): 1, 0 or NaN for unknown.

    Returns:
        Scalar: mean over the known labels of the batch; 0 if there are none.
    """
    known = ~targets.isnan()
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.nan_to_num(0.0), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def prior_logits(targets: Tensor) -> Tensor:
    """Log-odds of each finding among the known labels: where the head's bias starts.

    Args:
        targets: (N, findings): 1, 0 or NaN.
    """
    known = ~targets.isnan()
    # One imagined positive and negative keep the odds finite.
    positives = (targets.nan_to_num(0.0) * known).sum(0) + 1
    return torch.log(positives / (known.sum(0) + 2 - positives))
