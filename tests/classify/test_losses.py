import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from components.classify.losses import focal, make, masked_bce, prior_logits
from components.classify.params import Classify

NAN = float("nan")


def test_masked_bce_is_the_mean_over_known_labels() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]])
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    terms = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(2.0)), math.log(1 + math.exp(-0.1))]
    assert float(masked_bce(logits, targets)) == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_unknown_labels_have_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce(logits, torch.tensor([[NAN, 1.0], [NAN, NAN]])).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, True], [False, False]]


def test_the_loss_of_a_batch_without_labels_is_zero() -> None:
    assert float(masked_bce(torch.randn(3, 2), torch.full((3, 2), NAN))) == 0


def test_prior_is_the_log_odds_of_known_labels() -> None:
    targets = torch.tensor([[1.0, NAN], [1.0, NAN], [0.0, NAN], [NAN, NAN]])
    assert prior_logits(targets).tolist() == pytest.approx([math.log(3 / 2), 0.0])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits and targets of three findings. The last finding is rare; 10 % of the targets are unknown."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(400, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.02])).float()
    targets[torch.rand(400, 3, generator=generator) < 0.1] = NAN
    return torch.randn(400, 3, generator=generator) * 2, targets


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_agrees_with_torchvision(batch: tuple[Tensor, Tensor], gamma: float) -> None:
    logits, targets = batch
    known = ~targets.isnan()
    expected = sigmoid_focal_loss(logits[known], targets[known], alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(focal(logits, targets, gamma), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_no_gradient_for_the_most_confident_images(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    focal(logits, torch.tensor([[1.0, 0.0]]), gamma).backward()
    assert logits.grad is not None and logits.grad.tolist() == [[0, 0]]


def test_weighted_bce_gives_both_classes_of_a_finding_the_same_weight(batch: tuple[Tensor, Tensor]) -> None:
    _, targets = batch
    loss, start = make(Classify(loss="weighted_bce"), prior_logits(targets))
    logits = start.expand(400, 3).clone().requires_grad_()
    loss(logits, targets).backward()
    assert logits.grad is not None
    for finding in range(3):
        pull = [-float(logits.grad[targets[:, finding] == value, finding].sum()) for value in (1, 0)]
        assert pull[0] == pytest.approx(-pull[1], rel=0.15)  # not exactly: pseudo-counts shift the prior


def test_logit_adjustment_agrees_with_its_formula(batch: tuple[Tensor, Tensor]) -> None:
    """Menon et al. 2021 for two classes: log(1 + exp(-y (f + tau log(pi_1 / pi_0)))) with y = +-1."""
    logits, targets = batch
    prior = prior_logits(targets)
    loss, _ = make(Classify(loss="logit_adjustment", adjustment=1.5), prior)
    terms = [
        math.log1p(math.exp(-(1 if targets[i, f] == 1 else -1) * float(logits[i, f] + 1.5 * prior[f])))
        for i in range(400)
        for f in range(3)
        if not targets[i, f].isnan()
    ]
    assert float(loss(logits, targets)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("name", ["bce", "weighted_bce", "focal", "logit_adjustment"])
def test_every_loss_starts_near_its_best_constant_scores(name: str, batch: tuple[Tensor, Tensor]) -> None:
    """The gradient at the initial logits is almost zero; pseudo-counts shift the prior a little."""
    _, targets = batch
    loss, start = make(Classify(loss=name, focal_gamma=0), prior_logits(targets))
    logits = start.clone().requires_grad_()
    loss(logits.expand(400, 3), targets).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 0.02
