"""The inputs of the stage, opened and checked before training: shards, backbones, a generator."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torchvision
from safetensors.torch import load as load_safetensors
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, WEIGHTS
from components.common.formats.predictions import META
from components.common.runs import storage
from components.common.runs.inputs import read_model, upstream_run_ids
from components.common.runs.shards import Shards
from components.common.training import backbones, devices
from components.common.training.reader import Reader
from components.invert.features import FeatureSpace, pretrained_space, random_space
from components.invert.generator import SHAPE
from components.invert.inverter import GENERATOR, MODEL_KEYS, part
from components.invert.params import Invert

PERCEPTUAL_SEED, JUDGE_SEED = 1, 2  # seeds of networks with random weights: the judge must differ from the perceptual backbone

log = logging.getLogger(__name__)


class InputFolders(NamedTuple):
    """Outputs of other stages and runs; None if not given."""

    backbone: str | None = None
    perceptual: str | None = None
    judge: str | None = None
    generator: str | None = None


@dataclass
class Inputs:
    """All opened inputs."""

    shards: Shards
    train: Reader
    val: Reader
    test: Reader  # opened now to check that it exists; its images are read at the end
    device: torch.device
    resnet: torchvision.models.ResNet  # the backbone that the encoder starts from
    normalisation: dict[str, float]  # mean and std of the encoder's input
    perceptual: FeatureSpace | None
    judge: FeatureSpace
    generator: dict[str, Tensor] | None  # weights; None: one is to be trained
    inputs: dict[str, str]  # SHA-256 by name of input
    upstream: dict[str, str]  # MLflow run id by name of input


def open_inputs(params: Invert, shards: Shards, folders: InputFolders) -> Inputs:
    """Opens all inputs; raises UserError if one cannot be used with these shards and parameters."""
    if shards.size < params.size:
        raise UserError(f"invert.size: {params.size}, but the shards hold images of {shards.size} pixels; lower it")
    used = folders._replace(perceptual=_perceptual_folder(params, folders))
    generator, generator_digest = _read_generator(used.generator, params, shards) if used.generator else (None, None)
    device = devices.set_up(params.device, params.seed)
    train, val, test = (Reader(shards, split, META) for split in ("train", "val", "test"))
    for name in ("batch_size",) if generator else ("gan_batch_size", "batch_size"):
        if len(train) < (asked := getattr(params, name)):
            raise UserError(f"invert.{name}: {asked}, but the train split has {len(train)} images; lower it or add patients")
    load = cache(backbones.load)  # each folder is read once
    resnet, mean, std, digests, upstream = backbones.start(used.backbone, params.arch, shards, load)
    upstream |= upstream_run_ids({name: folder for name, folder in used._asdict().items() if folder and name != "backbone"})

    def space(name: str, seed: int) -> FeatureSpace:
        if folder := getattr(used, name):
            loaded = load(folder, params.arch)
            digests[name] = loaded[2]
            return pretrained_space(loaded, device)
        whole = Reader(shards, "train", rank=0, ranks=1)  # all processes make the same network
        return random_space(params, seed, whole, shards.mean_std, device)

    perceptual = None if params.perceptual == "none" else space("perceptual", PERCEPTUAL_SEED)
    judge = space("judge", JUDGE_SEED)
    if used.judge and digests["judge"] == digests.get("perceptual"):
        raise UserError(f"--judge {used.judge}: is the backbone of the perceptual loss; name one that the encoder was not trained with")
    log.info("invert: perceptual loss in %s, judged in %s", perceptual.name if perceptual else "no backbone", judge.name)
    if generator_digest:
        digests["generator"] = generator_digest
    normalisation = {"mean": mean, "std": std}
    return Inputs(shards, train, val, test, device, resnet, normalisation, perceptual, judge, generator, digests, upstream)


def _perceptual_folder(params: Invert, folders: InputFolders) -> str | None:
    """Falls back to the encoder's backbone if no other is named."""
    if params.perceptual == "backbone":
        return folders.perceptual or folders.backbone
    if folders.perceptual:
        log.warning("invert: %s is not used, since invert.perceptual is %s", folders.perceptual, params.perceptual)
    return None


def _read_generator(folder: str, params: Invert, shards: Shards) -> tuple[dict[str, Tensor], str]:
    """Reads the generator of an output of invert, and the SHA-256 of its model.json; raises UserError if its shape is not as asked for."""
    description, digest = read_model(folder, "invert")
    if description.get("task") != "invert":
        raise UserError(f"--generator {folder}: is a model of {description.get('task')}; name an output folder of invert")
    for name in SHAPE:
        if (known := description[MODEL_KEYS[name]]) != (asked := getattr(params, name)):
            found = f"--generator {folder}: has {name} {known}"
            raise UserError(f"{found}, the parameters ask for {asked}; set invert.{name} to match")
    if {name: value for name, value in description["inputs"].items() if name.startswith("shards")} != shards.inputs:
        log.warning("invert: the generator in %s was trained on other shards; it may have seen images of this test split", folder)
    content = storage.read(storage.join(folder, WEIGHTS))
    if storage.digest(content) != description["sha256"]:
        raise UserError(f"{storage.join(folder, WEIGHTS)}: does not match {DESCRIPTION}; run invert again")
    return part(load_safetensors(content), GENERATOR), digest
