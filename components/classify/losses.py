"""Losses over the known labels: plain binary cross-entropy, and losses for findings with few positives.

Logits and targets are (B, findings), targets 1, 0 or NaN for unknown. Every loss is the mean over the known labels of the batch,
0 if there are none; with several processes it is this process's share, and the shares add up to the mean over the whole batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from components.classify.params import Classify
from components.common.training import processes

Loss = Callable[[Tensor, Tensor], Tensor]


def make(params: Classify, prior: Tensor) -> tuple[Loss, Tensor]:
    """Returns the loss that the parameters ask for, and the initial bias of the head: its best constant logits for a prior (findings,)."""
    if params.loss == "weighted_bce":
        weight = torch.exp(-prior)
        return lambda logits, targets: masked_bce(logits, targets, weight.to(logits.device)), torch.zeros_like(prior)
    if params.loss == "focal":
        return lambda logits, targets: focal(logits, targets, params.focal_gamma), prior
    if params.loss == "logit_adjustment":
        shift = params.adjustment * prior
        return lambda logits, targets: masked_bce(logits + shift.to(logits.device), targets), prior - shift
    return masked_bce, prior


def masked_bce(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, with the terms of positives multiplied by `positive_weight` (findings,).

    With tau times the log-odds of the prior added to the logits it is the logit-adjusted loss (Menon et al., ICLR 2021, equation
    10, for two classes): the network then learns to rank as if both classes were equally frequent. As each finding has a bias of
    its own, the adjustment shifts scores and hardly changes how the images rank for a finding.
    """
    labels = targets.nan_to_num(0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=positive_weight, reduction="none")
    return _masked_mean(losses, targets)


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, where p is the probability given to the true class (Lin et al., ICCV 2017, equation 4)."""
    labels = targets.nan_to_num(0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    # Through the logarithm of 1 - p, whose slope is finite even where 1 - p is nearly 0.
    log_error = F.logsigmoid(logits.float() * (1 - 2 * labels))
    return _masked_mean(torch.exp(gamma * log_error) * losses, targets)


def prior_logits(targets: Tensor) -> Tensor:
    """Log-odds of each finding among the known labels of (N, findings); one pseudo-count per class keeps them finite."""
    known = ~targets.isnan()
    positives = (targets.nan_to_num(0.0) * known).sum(0) + 1
    return torch.log(positives / (known.sum(0) + 2 - positives))


def _masked_mean(losses: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return (losses * known).sum() / processes.sum_over_ranks(known.sum()).clamp_min(1)
