"""Compares the training of each head in two processes with that in one; started by test_heads_in_processes.py through torchrun."""

import os
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from components.classify.training import FineTuning
from components.common.runs.shards import Shards, open_shards
from components.common.training import processes
from components.common.training.loop import Trainable
from components.detect.training import Detection
from components.invert.gan_training import GanTraining
from components.invert.inputs import InputFolders, open_inputs
from components.invert.run import prepare_encoder
from components.params import Params

STEPS = 3


def training(name: str, params: Params, shards: Shards) -> Trainable:
    """Prepares a training by the name of its head, and of its mode or phase."""
    if name.startswith("invert"):
        inputs = open_inputs(params.invert, shards, InputFolders())
        gan = GanTraining(params.invert, inputs.train)
        return gan if name == "invert gan" else prepare_encoder(params.invert, inputs, gan.average.state_dict())
    return Detection(params.detect, shards, None) if name == "detect" else FineTuning(params.classify, shards, None)


def numbers(trainable: Trainable) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Takes some steps and ends an epoch; returns the numbers of each, and the gradients of the first step."""
    trainable.start()
    rows, gradients = [], []
    for step, batch in enumerate(islice(trainable.batches(0, 0), STEPS)):
        rows.append({name: float(value) for name, value in trainable.train_step(batch, 0, step / 10).items()})
        if not step:
            modules = [value for name in trainable.stateful if isinstance(value := getattr(trainable, name), nn.Module)]
            gradients = [weight.grad.clone() for module in modules for weight in module.parameters() if weight.grad is not None]
    return [*rows, trainable.end_epoch(0)], gradients


def as_one(work: Callable[[], Any]) -> Any:
    """Does work as if this process were the only one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        return work()


def compare(name: str) -> None:
    """Compares losses, validation scores and gradients."""
    params, shards = Params.model_validate_json(os.environ["PARAMS"]), open_shards(os.environ["SHARDS"])
    (alone, expected), (together, found) = (way(lambda: numbers(training(name, params, shards))) for way in (as_one, lambda work: work()))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3, nan_ok=True)
    assert together[0] == pytest.approx(alone[0], rel=2e-5, abs=1e-6)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, expected))
    assert (ours - theirs).norm() <= float(os.environ["TOLERANCE"]) * theirs.norm() > 0


if __name__ == "__main__":
    with processes.process_group("cpu"):
        compare(sys.argv[1])
