"""The models of a study: first backbones and generators, then the cells that the page compares. study/dvc.yaml makes the same.

A model is a mapping of texts, since that is what a loop of a pipeline passes on: the stage, its inputs and its section as JSON, and
its output folder. `evaluate study` looks for the cells in these folders.
"""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from components.common.runs import storage
from components.common.runs.provenance import git_state
from components.params import Params

KEY_DIGITS = 16
COMPARED = ("pretrain", "classify", "detect", "invert")  # stages that the claims of the paper are about


class StudyPlan(NamedTuple):
    """The models of a study on one set of shards."""

    shards: str
    folder: str  # parent folder of all models
    params: Params
    heads: tuple[str, ...]  # heads that backbones are compared by; `classify` always is

    def prerequisites(self) -> list[dict[str, str]]:
        """Lists the backbones, and the generators, one per seed for all arms."""
        study = self.params.study
        models = [
            self._model("pretrain", self._backbone(arm, seed), {}, preset=arm, seed=seed) for arm, seed in product(study.arms, study.seeds)
        ]
        if "invert" in self.heads:
            models += [self._model("invert", self._generator(seed), {}, perceptual="none", epochs=1, seed=seed) for seed in study.seeds]
        return models

    def cells(self) -> list[dict[str, str]]:
        """Lists what is compared: each claim under each condition, for each arm and seed."""
        return [model for arm, seed in product(self.params.study.arms, self.params.study.seeds) for model in self._cells(arm, seed)]

    def _cells(self, arm: str, seed: int) -> Iterator[dict[str, str]]:
        study, backbone = self.params.study, self._backbone(arm, seed)
        for fraction in study.fractions:
            folder = self._path("scarcity", fraction, arm, seed)
            yield self._model("classify", folder, {"backbone": backbone}, label_fraction=fraction, seed=seed)
        for rate in study.positive_rates:
            folder = self._path("imbalance", rate, arm, seed)
            yield self._model("classify", folder, {"backbone": backbone}, positive_rate={study.imbalanced: rate}, seed=seed)
        if "detect" in self.heads:
            yield self._model("detect", self._path("detection", "all", arm, seed), {"backbone": backbone}, seed=seed)
        if "invert" in self.heads:
            inputs = {"generator": self._generator(seed), "perceptual": backbone}
            yield self._model("invert", self._path("inversion", "all", arm, seed), inputs, seed=seed)

    def _model(self, stage: str, folder: str, inputs: dict[str, str], **changes: Any) -> dict[str, str]:
        section = self.params.section(stage).values() | changes
        return {
            "stage": stage,
            "inputs": json.dumps({"shards": [self.shards], **inputs}),
            "section": json.dumps(section),
            "folder": folder,
        }

    def _backbone(self, arm: str, seed: int) -> str:
        return self._path("backbones", arm, seed)

    def _generator(self, seed: int) -> str:
        return self._path("generators", seed)

    def _path(self, *names: object) -> str:
        return storage.join(self.folder, *map(str, names))


def plan(shards: str, root: str, params: Params, heads: str) -> StudyPlan:
    """Plans a study for heads separated by commas, in a folder of `root` named by a hash of all that its result depends on."""
    depends = {
        "shards": shards,
        "commit": git_state()["commit"],
        "params": {name: params.section(name).values() for name in (*COMPARED, "study")},
    }
    key = storage.digest(json.dumps(depends, sort_keys=True).encode())[:KEY_DIGITS]
    return StudyPlan(shards, storage.join(root, "study", key), params, tuple(heads.split(",")))
