"""The pretraining loss: InfoNCE and one term for each stage of a preset.

The presets, with the stages that they compare and the similarity that each is pulled towards:

- `moco`: none. Plain MoCo v2.
- `ifa`: layer1 to 0.3, layer4 to 1. The authors' code (Cho et al. 2024, doi 10.1007/s10278-024-01032-x).
- `ifa-cosine`: layer1 and layer4 to 1. The paper's abstract.
- `ifa-layer4`: layer4 to 1.
- `aligned`: as `ifa`, but between positions that show the same anatomy.
- `mse`: the mean squared error of all four stages' pooled maps (Kaku et al. 2021, arXiv 2110.14805), the closest relative.
- `scratch` and `base`: none, without any training.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.pretrain.align import Geometry, align
from components.pretrain.losses import MSE_POOLED, average, ifa, info_nce, mse, similarity_map
from components.pretrain.moco import Encodings
from components.pretrain.params import Pretrain, Term

WATCHED = ("layer1", "layer4")  # stages whose mean similarity is reported even if it is not part of the loss


class Preset(NamedTuple):
    """The terms of a preset."""

    terms: Mapping[str, Term]
    squared: bool = False  # whether the terms are mean squared errors instead of similarities
    aligned: bool = False  # whether positions that show the same anatomy are compared


PRESETS = {
    "scratch": Preset({}),
    "base": Preset({}),
    "moco": Preset({}),
    "ifa": Preset({"layer1": Term(target=0.3), "layer4": Term(target=1)}),
    "ifa-cosine": Preset({"layer1": Term(target=1), "layer4": Term(target=1)}),
    "ifa-layer4": Preset({"layer4": Term(target=1)}),
    "aligned": Preset({"layer1": Term(target=0.3), "layer4": Term(target=1)}, aligned=True),
    "mse": Preset({stage: Term(weight=0.25) for stage in MSE_POOLED}, squared=True),
}


class Objective:
    """The weighted sum of InfoNCE and the terms of a preset."""

    stages: tuple[str, ...]  # the stages whose maps it needs from both encoders

    def __init__(self, params: Pretrain):
        self.params, self.preset = params, PRESETS[params.preset]
        self.terms: Mapping[Any, Term] = self.preset.terms if params.terms is None else params.terms
        self.stages = tuple(stage for stage in MSE_POOLED if stage in self.terms or stage in WATCHED)

    def __call__(self, views: Encodings, queue: Tensor, geometry: Geometry) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss and, by name, its parts and the mean similarities as scalars without gradient, `loss` among them."""
        nce = info_nce(views.q, views.k, queue, self.params.temperature)
        loss, numbers = self.params.lambda_nce * nce, {"loss_nce": nce}
        for stage in self.stages:
            value, similarity = self._compare(stage, views, geometry)
            if value is not None:
                loss = loss + self.params.lambda_ifa * self.terms[stage].weight * value
                numbers[f"loss_{'mse' if self.preset.squared else 'ifa'}_{stage}"] = value
            if stage in WATCHED:
                numbers[f"similarity_{stage}"] = similarity
        return loss, {name: number.detach() for name, number in {"loss": loss, **numbers}.items()}

    def _compare(self, stage: str, views: Encodings, geometry: Geometry) -> tuple[Tensor | None, Tensor]:
        """Returns the stage's term, None if it has none, and its mean similarity, NaN if the keys' maps were not sent."""
        if stage not in views.key_maps:
            return None, torch.full_like(views.q[0, 0], math.nan)
        query_map, key_map, inside = views.query_maps[stage], views.key_maps[stage], None
        if self.preset.aligned:
            key_map, inside = align(key_map, geometry, stage)
        term = self.terms.get(stage)
        if term is None or self.preset.squared:
            mean = average(similarity_map(query_map.detach(), key_map), inside)
            return (None if term is None else mse(query_map, key_map, MSE_POOLED[stage])), mean
        similarity = similarity_map(query_map, key_map)
        return ifa(similarity, term.target, inside), average(similarity.detach(), inside)
