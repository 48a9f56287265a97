"""The models of a study: bases and generators, backbones, and the cells that the page compares. study/dvc.yaml makes the same.

MoCo makes one base per seed. Each arm continues it, with a new head and queue and its own loss, for as many steps as the others, as
the authors of IFA continued their MoCo weights. The controls are `scratch`, random weights, and `base`, the base itself.

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

Model = dict[str, str]


class StudyPlan(NamedTuple):
    """The models of a study that is judged on one cohort."""

    shards: str  # of the cohort that the heads are trained and tested on
    pretraining: tuple[str, ...]  # shards of all cohorts that bases and arms are pretrained on
    folder: str  # parent folder of generators and cells
    pretrained: str  # parent folder of bases and backbones; studies on several cohorts share it
    params: Params
    heads: tuple[str, ...]  # heads that backbones are compared by; `classify` always is
    start: str = ""  # starting point of the bases; empty for random weights

    def phases(self) -> list[list[Model]]:
        """Lists the models in three phases: each needs those of the phases before."""
        study = self.params.study
        models = list(product(study.arms, study.seeds))
        first = [self._base_model(seed) for seed in study.seeds]
        if "invert" in self.heads:
            first += [self._model("invert", self._generator(seed), {}, perceptual="none", epochs=1, seed=seed) for seed in study.seeds]
        backbones = [self._backbone_model(arm, seed) for arm, seed in models]
        return [first, backbones, [cell for arm, seed in models for cell in self._cells(arm, seed)]]

    def _base_model(self, seed: int) -> Model:
        epochs = self.params.study.base_epochs
        inputs = {"start": self.start} if self.start else {}
        return self._pretraining(self._base(seed), inputs, preset="moco", epochs=epochs, seed=seed)

    def _backbone_model(self, arm: str, seed: int) -> Model:
        return self._pretraining(self.backbone(arm, seed), {"start": self._base(seed)}, preset=arm, seed=seed)

    def _cells(self, arm: str, seed: int) -> Iterator[Model]:
        study, backbone = self.params.study, self.backbone(arm, seed)
        yield self._model("classify", self._path("probe", "all", arm, seed), {"backbone": backbone}, mode="linear", seed=seed)
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

    def _model(self, stage: str, folder: str, inputs: dict[str, Any], **changes: Any) -> Model:
        section = self.params.section(stage).values() | changes
        return {
            "stage": stage,
            "inputs": json.dumps({"shards": [self.shards], **inputs}),
            "section": json.dumps(section),
            "folder": folder,
        }

    def _pretraining(self, folder: str, inputs: dict[str, str], **changes: Any) -> Model:
        return self._model("pretrain", folder, {"shards": list(self.pretraining), **inputs}, **changes)

    def _base(self, seed: int) -> str:
        return storage.join(self.pretrained, "bases", str(seed))

    def backbone(self, arm: str, seed: int) -> str:
        """Returns the folder of a backbone."""
        return storage.join(self.pretrained, "backbones", arm, str(seed))

    def _generator(self, seed: int) -> str:
        return self._path("generators", seed)

    def _path(self, *names: object) -> str:
        return storage.join(self.folder, *map(str, names))


def plan(shards: str, root: str, params: Params, heads: str, start: dict[str, str] | None = None) -> StudyPlan:
    """Plans a study in a folder of `root` named by a hash of all that its result depends on.

    Args:
        shards: folder of the shards.
        root: parent folder of all outputs.
        params: parameters of the stages.
        heads: heads separated by commas.
        start: `uri` and `sha256` of the starting point of the bases; empty for random weights.
    """
    start = start or {}
    depends = {
        "shards": shards,
        "start": start,
        "commit": git_state()["commit"],
        "params": {name: params.section(name).values() for name in (*COMPARED, "study")},
    }
    key = storage.digest(json.dumps(depends, sort_keys=True).encode())[:KEY_DIGITS]
    folder = storage.join(root, "study", key)
    return StudyPlan(shards, (shards,), folder, folder, params, tuple(heads.split(",")), start.get("uri", ""))
