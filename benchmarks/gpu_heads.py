"""Time the training steps of the heads on phantoms."""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_speed import throughput
from benchmarks.stages import overrides, run
from benchmarks.timing import heading, row
from components.classify.training import FineTuning
from components.common.runs.shards import Shards, open_shards
from components.common.training import devices, loop
from components.detect.training import Detection
from components.invert.gan_training import GanTraining
from components.invert.inputs import InputFolders, open_inputs
from components.invert.run import prepare_encoder
from components.params import Params

TOY = {
    "classify": {"arch": "resnet18", "batch_size": 8},
    "detect": {"arch": "resnet18", "channels": 64, "batch_size": 8},
    "invert": {
        "arch": "resnet18",
        "size": 16,
        "latent_dim": 8,
        "channel_base": 128,
        "channel_max": 8,
        "gan_batch_size": 8,
        "batch_size": 8,
    },
}


def heads(device: str, folder: Path, tiny: bool) -> None:
    """Print images per second and the peak of the memory for each training of each head."""
    shards = open_shards([phantoms(folder, *((24, 64, 48) if tiny else (160, 512, 512)))])
    given = {name: {"device": device, **(TOY[name] if tiny else {})} for name in TOY}
    params = Params.model_validate(given | {"invert": {**given["invert"], "perceptual": "scratch"}})
    heading(f"heads at {shards.size} px", "batch", "images/s", "peak, GiB")
    for name, make in trainings(params, shards).items():
        task = make()
        place = devices.set_up(device, 0)
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        images, _ = throughput(task, 2 if tiny else 16, place, warm=1 if tiny else 2)
        row(name, str(task.batch_size), f"{images:.0f}", f"{devices.peak_gib():.1f}" if place.type == "cuda" else "-")


def trainings(params: Params, shards: Shards) -> dict[str, Callable[[], loop.Trainable]]:
    """Return what makes each training, by name."""
    invert = params.section("invert")

    def generator() -> GanTraining:
        return GanTraining(invert, open_inputs(invert, shards, InputFolders()).train)

    def encoder() -> loop.Trainable:
        return prepare_encoder(invert, open_inputs(invert, shards, InputFolders()), generator().average.state_dict())

    def detector(kind: str) -> Callable[[], loop.Trainable]:
        return lambda: Detection(params.section("detect").model_copy(update={"detector": kind}), shards, None)

    return {
        "classify, all weights": lambda: FineTuning(params.section("classify"), shards, None),
        "detect, RetinaNet": detector("retinanet"),
        "detect, Faster R-CNN": detector("fasterrcnn"),
        "invert, generator": generator,
        "invert, encoder": encoder,
    }


def phantoms(folder: Path, patients: int, size: int, side: int) -> str:
    """Return shards of phantoms, which have findings and boxes."""
    raw, shards = str(folder / "raw"), folder / "phantoms"
    given = overrides([f"simulate.patients={patients}", f"simulate.size={size}", f"preprocess.size={side}", "preprocess.parts=1"])
    common = ["--params", "/dev/null", *given]
    for command in (["simulate", "--out", raw], ["preprocess", "--raw", raw, "--out", str(shards)]):
        run([*command, *common], mlflow=folder / "mlflow.db", log=folder / f"{command[0]}.log")
    return str(shards)
