"""The classifier: a backbone with a linear head."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from components.common.training import backbones

DEPTHS = {"fc": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4}
"""Depth of each part of a ResNet below the head; whatever precedes layer1 is the deepest."""


def attach_head(resnet: torchvision.models.ResNet, findings: int) -> torchvision.models.ResNet:
    """Puts a linear layer with `findings` logits in the place of torchvision's (`fc`)."""
    resnet.fc = nn.Linear(backbones.width(resnet), findings)
    return resnet


def parameter_groups(resnet: torchvision.models.ResNet, decay: float) -> list[dict[str, Any]]:
    """Groups the parameters from the head down, each group with `scale`, the factor of its learning rate.

    Layer-wise decay (Clark et al., ELECTRA, ICLR 2020): each stage learns at `decay`, in (0, 1], times the rate of the one above,
    since deeper features are more general and need less retraining.
    """
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in resnet.named_parameters():
        groups.setdefault(DEPTHS.get(name.split(".")[0], len(DEPTHS)), []).append(parameter)
    return [{"params": groups[depth], "scale": decay**depth} for depth in sorted(groups)]


def scale_logits(head: nn.Linear, temperature: float) -> None:
    """Divides the logits of a head by a temperature."""
    with torch.no_grad():
        head.weight.div_(temperature)
        head.bias.div_(temperature)


def fold_standardisation(head: nn.Linear, mean: Tensor, std: Tensor) -> nn.Linear:
    """Makes a head whose logits for C features are those of `head` for (features - mean) / std, with mean and std (C,)."""
    folded = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        weight = head.weight.cpu().double() / std.double()
        folded.weight.copy_(weight)
        folded.bias.copy_(head.bias.cpu().double() - weight @ mean.double())
    return folded
