"""Losses over the known labels: plain, and for findings of which positives are few.

Shapes: logits and targets are (B, findings), targets 1, 0 or NaN for unknown. Every loss is a mean over the known labels of
the batch, 0 if there are none.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from components.classify.params import Classify

Loss = Callable[[Tensor, Tensor], Tensor]


def make(params: Classify, prior: Tensor) -> tuple[Loss, Tensor]:
    """The loss that the parameters ask for, and the head's bias that it starts from: the best constant scores.

    Args:
        params: loss, focal_gamma and adjustment.
        prior: (findings,), from prior_logits of the training labels.
    """
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
    """Binary cross-entropy.

    With logits plus tau times the log-odds of the prior it is the logit-adjusted loss (Menon et al., ICLR 2021, equation 10, for
    two classes): what is learnt then ranks as if both classes were equally frequent. As each finding has a bias of its own,
    the adjustment moves scores up and down and hardly changes how images of a finding rank.

    Args:
        logits: (B, findings).
        targets: (B, findings).
        positive_weight: (findings,), by which terms of positives are multiplied.
    """
    wanted = targets.nan_to_num(0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=positive_weight, reduction="none")
    return _masked_mean(losses, targets)


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, p the probability given to the truth (Lin et al., ICCV 2017, equation 4)."""
    wanted = targets.nan_to_num(0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    # Through the logarithm of 1 - p, whose slope is finite also where 1 - p is nearly 0.
    easy = F.logsigmoid(logits.float() * (1 - 2 * wanted))
    return _masked_mean(torch.exp(gamma * easy) * losses, targets)


def prior_logits(targets: Tensor) -> Tensor:
    """Log-odds of each finding among the known labels.

    Args:
        targets: (N, findings): 1, 0 or NaN.
    """
    known = ~targets.isnan()
    # One imagined positive and negative keep the odds finite.
    positives = (targets.nan_to_num(0.0) * known).sum(0) + 1
    return torch.log(positives / (known.sum(0) + 2 - positives))


def _masked_mean(losses: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return (losses * known).sum() / known.sum().clamp_min(1)
