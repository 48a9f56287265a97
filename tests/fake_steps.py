"""Training steps of all stages on a fake GPU; started by test_fake_steps.py in a process of its own.

Prints for each case a line of JSON: its name, and the places where the host waits in each step, or the error.
"""

import json
import sys
import traceback
from collections.abc import Callable

from benchmarks.fake_cuda import Counts, collectives, each_step, fake_cuda
from components.classify.training import FineTuning
from components.common.runs.shards import Shards, open_shards
from components.common.training import loop
from components.detect.training import Detection
from components.invert.gan_training import GanTraining
from components.invert.inputs import InputFolders, open_inputs
from components.invert.run import prepare_encoder
from components.params import Params
from components.pretrain.objective import PRESETS
from components.pretrain.params import CONTROLS
from components.pretrain.training import Pretraining
from tests.heads import PARAMS

SMALL = {"arch": "resnet18", "batch_size": 8, "queue_size": 16, "shuffle_groups": 4, "dim": 16, "probe_epochs": 0}


def pretraining(shards: Shards, **changes: object) -> Pretraining:
    params = Params.model_validate({"pretrain": {**SMALL, **changes}})
    task = Pretraining(params.pretrain, params.runtime, shards)
    task.start()
    return task


def section(name: str, **changes: object) -> Params:
    return Params.model_validate({name: {**PARAMS.section(name).values(), **changes}})


def classification(shards: Shards, **changes: object) -> loop.Trainable:
    params = Params.model_validate({"classify": {"arch": "resnet18", "batch_size": 8, **changes}}).classify
    return FineTuning(params, shards, None)


def generator(shards: Shards) -> loop.Trainable:
    params = section("invert", path_weight=2.0).invert
    return GanTraining(params, open_inputs(params, shards, InputFolders()).train)


def encoder(shards: Shards) -> loop.Trainable:
    params = section("invert", perceptual="scratch").invert
    inputs = open_inputs(params, shards, InputFolders())
    return prepare_encoder(params, inputs, GanTraining(params, inputs.train).average.state_dict())


def cases() -> dict[str, Callable[[Shards], loop.Trainable]]:
    """Returns what makes each training, by name: stage, then what is special."""
    pretrain: dict[str, dict[str, object]] = {
        **{preset: {"preset": preset} for preset in PRESETS if preset not in CONTROLS},
        **{batch_norm: {"batch_norm": batch_norm} for batch_norm in ("sync", "frozen")},
        **{"accumulate": {"accumulate": 2}, "frequent": {"views": "frequent"}, "2 x 2 processes": {}},
    }
    return {
        **{f"pretrain {name}": lambda shards, given=given: pretraining(shards, **given) for name, given in pretrain.items()},
        "classify": classification,
        **{
            f"detect {kind}": lambda shards, kind=kind: Detection(section("detect", detector=kind).detect, shards, None)
            for kind in ("retinanet", "fasterrcnn")
        },
        "invert generator": generator,
        "invert encoder": encoder,
    }


def count(name: str, shards: Shards) -> list[Counts]:
    nodes, size = (2, 2) if name.endswith("processes") else (1, 1)
    with fake_cuda() as counts, collectives(counts, nodes, size):
        return each_step(cases()[name](shards), counts, 5 if "generator" in name else 2)


if __name__ == "__main__":
    opened = open_shards(sys.argv[1])
    for case in cases():
        try:
            steps, error = [counts.waits for counts in count(case, opened)], ""
        except Exception:  # reported, and the other cases go on
            steps, error = [], traceback.format_exc()
        sys.stdout.write(json.dumps([case, steps, error]) + "\n")
