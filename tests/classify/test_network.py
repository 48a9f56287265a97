import math

import pytest
import torch

from components.classify.network import masked_bce, prior_logits

NAN = float("nan")


def test_masked_bce_is_the_mean_over_known_labels() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]])
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    terms = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(2.0)), math.log(1 + math.exp(-0.1))]
    assert float(masked_bce(logits, targets)) == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_unknown_labels_move_nothing() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce(logits, torch.tensor([[NAN, 1.0], [NAN, NAN]])).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, True], [False, False]]


def test_a_batch_without_labels_costs_nothing() -> None:
    assert float(masked_bce(torch.randn(3, 2), torch.full((3, 2), NAN))) == 0


def test_prior_is_the_log_odds_of_known_labels() -> None:
    targets = torch.tensor([[1.0, NAN], [1.0, NAN], [0.0, NAN], [NAN, NAN]])
    assert prior_logits(targets).tolist() == pytest.approx([math.log(3 / 2), 0.0])
