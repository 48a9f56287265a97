"""Initial weights of pretraining: a published MoCo checkpoint, an ImageNet ResNet, or an earlier backbone.

The content of the path decides how it is read:

- a folder with backbone.json is an output of pretrain;
- a file with `module.encoder_q.*` has the format of the published MoCo checkpoints (facebookresearch/moco and its descendants):
  both encoders with their heads and, if present, the queue;
- a file with torchvision's names, `conv1.weight` and so on, is a ResNet, such as torchvision's for ImageNet. They may begin with
  `model.`, as in a saved torchxrayvision ResNet, whose other tensors are left out.

Files are safetensors, or written by `torch.save` and read weights-only.
"""

import io
import logging
import pickle
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from components.common.errors import UserError
from components.common.formats.backbone import BACKBONE
from components.common.runs import storage
from components.common.runs.inputs import upstream_run_id
from components.common.training import backbones
from components.pretrain.moco import Encoder, MoCo

HEAD = {"fc.0.": "head.0.", "fc.2.": "head.2."}
"""Layers of MoCo v2's head: their names in the published checkpoints and in `Encoder`."""

UNREADABLE = (pickle.UnpicklingError, SafetensorError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError)
"""Exceptions that torch.load raises for a damaged or foreign file."""

log = logging.getLogger(__name__)


class InitialWeights(NamedTuple):
    """Weights to start from."""

    source: str  # path or URI
    sha256: str
    query: Mapping[str, Tensor]  # by the names of `Encoder`; without the head if the source has none
    key: Mapping[str, Tensor] | None = None  # by the same names; None: a copy of the query encoder
    queue: Tensor | None = None  # (dim, K), the oldest key first
    upstream: Mapping[str, str] = MappingProxyType({})  # the MLflow run that made it, under the key `start`, if known


def read(source: str, arch: str) -> InitialWeights:
    """Reads weights from a file or an output folder of pretrain; raises UserError if it is missing, unknown, unsafe or of another arch."""
    if storage.exists(storage.join(source, BACKBONE)):
        resnet, _, digest = backbones.load(source, arch)
        run_id = upstream_run_id(source)
        return InitialWeights(source, digest, _prefixed(resnet.state_dict()), upstream={"start": run_id} if run_id else {})
    content = storage.read(source)
    weights, digest = _tensors(content, source), storage.digest(content)
    query, key = (_below(weights, prefix) for prefix in ("encoder_q.", "encoder_k."))
    if not query:
        return InitialWeights(source, digest, _prefixed(backbones.adapt(_below(weights, "model.") or weights, arch, source)))
    queue = _queue(weights["queue"], weights.get("queue_ptr", torch.zeros(1)), source) if "queue" in weights else None
    return InitialWeights(source, digest, _encoder(query, arch, source), _encoder(key, arch, source) if key else None, queue)


def load(model: MoCo, start: InitialWeights) -> None:
    """Loads the weights into both encoders, and the keys into the queue if they come from the same head."""
    headed = _load_encoder(model.query, start.query)
    _load_encoder(model.key, start.query if start.key is None else start.key)
    if not headed:
        model.key.head.load_state_dict(model.query.head.state_dict())
    keys = _load_queue(model, start.queue) if headed and start.key is not None else 0
    log.info("pretrain: starts from %s: its backbone, %s head, %d keys", start.source, "its" if headed else "a new", keys)


def _load_encoder(encoder: Encoder, weights: Mapping[str, Tensor]) -> bool:
    """Loads the backbone, and the head if there is one of the same shape; returns whether there is."""
    own = encoder.state_dict()
    head = [name for name in own if name.startswith("head.")]
    headed = all(name in weights and weights[name].shape == own[name].shape for name in head)
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if headed or name not in head}, strict=False)
    return headed


def _load_queue(model: MoCo, queue: Tensor | None) -> int:
    """Copies the newest keys, as many as fit, to the end of the queue; returns their number."""
    if queue is None or queue.shape[0] != model.queue.shape[0]:
        return 0
    count = min(queue.shape[1], model.queue.shape[1])
    model.queue[:, model.queue.shape[1] - count :] = queue[:, queue.shape[1] - count :]
    return count


def _tensors(content: bytes, source: str) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, without the prefix of DistributedDataParallel."""
    try:
        tree = load_safetensors(content) if content[8:9] == b"{" else torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except (*UNREADABLE, RuntimeError, TypeError, ValueError) as error:
        if "Unsupported global" in str(error):
            raise UserError(f"{source}: holds Python objects, which could run code; save only its state_dict") from None
        raise UserError(f"{source}: is not a checkpoint; give a file of torch.save, safetensors, or an output folder of pretrain") from None
    if isinstance(tree, Mapping):
        tree = tree.get("state_dict", tree)
    if not isinstance(tree, Mapping) or not any(isinstance(value, Tensor) for value in tree.values()):
        raise UserError(f"{source}: holds no state_dict; give a MoCo checkpoint, a ResNet or an output folder of pretrain")
    return {str(name).removeprefix("module."): value for name, value in tree.items() if isinstance(value, Tensor)}


def _queue(queue: Tensor, pointer: Tensor, source: str) -> Tensor:
    """Rolls a queue (dim, K), so that its oldest key, to which the pointer (1,) points, comes first."""
    reason = backbones.fault(queue)
    if queue.ndim != 2 or pointer.numel() != 1:
        reason = f"is {tuple(queue.shape)} with a queue_ptr {tuple(pointer.shape)}, not (dim, K) and (1,)"
    if reason:
        raise UserError(f"{source}: queue {reason}; give another checkpoint, or one without a queue")
    return queue.roll(-int(pointer), 1)


def _encoder(weights: Mapping[str, Tensor], arch: str, source: str) -> dict[str, Tensor]:
    heads = {new + name.removeprefix(old): tensor for name, tensor in weights.items() for old, new in HEAD.items() if name.startswith(old)}
    for name, tensor in heads.items():
        if reason := backbones.fault(tensor):
            raise UserError(f"{source}: {name} {reason}; give another checkpoint")
    return {**_prefixed(backbones.adapt(weights, arch, source)), **heads}


def _prefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{name}": tensor for name, tensor in weights.items()}


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
