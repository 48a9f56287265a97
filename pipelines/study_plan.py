"""The models of a study, as study/dvc.yaml makes them: first backbones and generators, then the cells that the page compares.

A model is a mapping of texts, since that is what a pipeline's loop hands on: the stage, its inputs and its section as JSON, and
the folder of its output. Folders are those that `evaluate study` looks for.
"""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from components.common.runs import storage
from components.common.runs.provenance import git_state
from components.params import Params

Model = dict[str, str]
KEY_DIGITS = 16
COMPARED = ("pretrain", "classify", "detect", "invert")


class Plan(NamedTuple):
    """A study on some shards."""

    shards: str
    folder: str
    """Of all its models."""
    params: Params
    heads: tuple[str, ...]
    """What backbones are compared for."""

    def first(self) -> list[Model]:
        """Backbones, and generators, of which all arms of a seed have the same."""
        made = [
            self._model("pretrain", self._backbone(arm, seed), {}, preset=arm, seed=seed)
            for arm, seed in product(self.params.study.arms, self.params.study.seeds)
        ]
        if "invert" in self.heads:
            seeds = self.params.study.seeds
            made += [self._model("invert", self._generator(seed), {}, perceptual="none", epochs=1, seed=seed) for seed in seeds]
        return made

    def cells(self) -> list[Model]:
        """What is compared: each claim under each condition, for each arm and seed."""
        return [model for arm, seed in product(self.params.study.arms, self.params.study.seeds) for model in self._cells(arm, seed)]

    def _cells(self, arm: str, seed: int) -> Iterator[Model]:
        study, backbone = self.params.study, self._backbone(arm, seed)
        for fraction in study.fractions:
            folder = self._place("scarcity", fraction, arm, seed)
            yield self._model("classify", folder, {"backbone": backbone}, label_fraction=fraction, seed=seed)
        for rate in study.positive_rates:
            folder = self._place("imbalance", rate, arm, seed)
            yield self._model("classify", folder, {"backbone": backbone}, positive_rate={study.imbalanced: rate}, seed=seed)
        if "detect" in self.heads:
            yield self._model("detect", self._place("detection", "all", arm, seed), {"backbone": backbone}, seed=seed)
        if "invert" in self.heads:
            inputs = {"generator": self._generator(seed), "perceptual": backbone}
            yield self._model("invert", self._place("inversion", "all", arm, seed), inputs, seed=seed)

    def _model(self, stage: str, folder: str, inputs: dict[str, str], **changes: Any) -> Model:
        section = self.params.section(stage).values() | changes
        given = {"shards": [self.shards], **inputs}
        return {"stage": stage, "inputs": json.dumps(given), "section": json.dumps(section), "folder": folder}

    def _backbone(self, arm: str, seed: int) -> str:
        return self._place("backbones", arm, seed)

    def _generator(self, seed: int) -> str:
        return self._place("generators", seed)

    def _place(self, *names: object) -> str:
        return storage.join(self.folder, *map(str, names))


def plan(shards: str, root: str, params: Params, heads: str) -> Plan:
    """The plan of a study.

    Args:
        shards: folder of the shards.
        root: folder of all outputs; the study's is below, named by a hash of all that decides what comes out.
        params: the training stages' sections and `study`.
        heads: names, with commas.
    """
    depends = {
        "shards": shards,
        "commit": git_state()["commit"],
        "params": {name: params.section(name).values() for name in (*COMPARED, "study")},
    }
    key = storage.digest(json.dumps(depends, sort_keys=True).encode())[:KEY_DIGITS]
    return Plan(shards, storage.join(root, "study", key), params, tuple(heads.split(",")))
