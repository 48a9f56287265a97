import torch
from torch import nn

from components.classify.network import attach_head, fold_standardisation, parameter_groups, scale_logits
from components.common.training import backbones


def test_learning_rates_fall_from_the_head_down() -> None:
    resnet = attach_head(backbones.build("resnet18"), 3)
    groups = parameter_groups(resnet, 0.5)
    scale = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    expected = {"fc": 1, "layer4": 1 / 2, "layer3": 1 / 4, "layer2": 1 / 8, "layer1": 1 / 16, "conv1": 1 / 32, "bn1": 1 / 32}
    named = dict(resnet.named_parameters())
    assert {name: scale[id(parameter)] for name, parameter in named.items()} == {name: expected[name.split(".")[0]] for name in named}
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_scaled_logits() -> None:
    head, x = nn.Linear(4, 2), torch.randn(5, 4)
    before = head(x) / 2.5
    scale_logits(head, 2.5)
    assert torch.allclose(head(x), before, atol=1e-6)


def test_folded_standardisation() -> None:
    head, x = nn.Linear(4, 2), torch.randn(6, 4)
    mean, std = torch.tensor([0.1, -2.0, 3.0, 0.0]), torch.tensor([0.5, 2.0, 0.1, 1.0])
    torch.testing.assert_close(fold_standardisation(head, mean, std)(mean + x * std), head(x), atol=1e-4, rtol=1e-4)
