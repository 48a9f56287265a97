"""Run training steps on tensors that claim to be on a GPU, and count what makes the host wait; no GPU is needed.

torch's FakeTensorMode computes shapes, dtypes and devices only, and refuses an operation on tensors of two devices as CUDA does. The
autograd engine asks the driver for streams of CUDA tensors even so, unless another accelerator is registered, which lasts as long as
the process: use it in a process of its own.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from components.common.runs.params import Runtime
from components.common.training import devices, loop, processes
from components.common.training.reader import Batch

DEVICE = torch.device("cuda:0")
HIDDEN = torch.device("meta")
MODE = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)  # one, since the stages cache tensors
FOUND = 2  # elements that an operation finds if their number depends on the data
AHEAD, WAITING, WITHIN, BETWEEN = "copied ahead", "waited for", "within the node", "between nodes"  # kinds of bytes
PINNED = "_pinned"  # attribute of tensors on the CPU that are copied without waiting
ROOT = Path(__file__).parents[1] / "components"

aten = torch.ops.aten
_tolist = Tensor.tolist


class Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, bytes that are copied between host and device, and synchronisations with the place that causes them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.engine = False  # whether C++ code outside an operation is the autograd engine
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Answers what depends on data that does not exist, and leaves the rest to FakeTensorMode."""
        if function is torch.ops.prim.device.default:
            return self.device_of(args)
        kwargs = {name: None if name == "generator" else value for name, value in (kwargs or {}).items()}
        if kwargs.get("device") == HIDDEN:
            kwargs["device"] = DEVICE
        with self._in_engine(False):
            return self._answer(function, args, kwargs)

    @contextmanager
    def _in_engine(self, value: bool) -> Iterator[None]:
        before, self.engine = self.engine, value
        try:
            yield
        finally:
            self.engine = before

    def device_of(self, args: Sequence[Any]) -> torch.device:
        """Tells C++ on which device a fake tensor is, but hides it from the autograd engine, which would ask the driver for streams."""
        fake: fake_tensor.FakeTensor = args[0]
        return HIDDEN if self.engine or fake.fake_mode.in_kernel_invocation else fake.fake_device

    def run_engine(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the backward pass."""
        with self._in_engine(True):
            return torch.autograd.graph._engine_run_backward(*args, **kwargs)

    def _answer(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.operations[function.overloadpacket.__name__] += 1
        if function in (aten._pin_memory.default, aten.pin_memory.default):
            setattr(args[0], PINNED, True)
            return args[0]
        if function.overloadpacket in (aten._fused_sgd_, aten._fused_adam_, aten._fused_adamw_):
            return None  # in place; FakeTensorMode does not know them
        if function is aten.is_pinned.default:
            return hasattr(args[0], PINNED)
        if function is aten._local_scalar_dense.default:
            self._wait(args[0], function)
            return 0.5 if args[0].is_floating_point() else int(args[0].dtype != torch.bool)
        if function is aten._to_copy.default and (target := kwargs.get("device")) is not None:
            return self._copy(function, args[0], torch.device(target), kwargs)
        if function is aten.copy_.default:
            self._count_copy(args[1], args[0].device, len(args) > 2 and args[2], function)
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
            args = (args[0], self._without_masks(function, args[1]), *args[2:])
        elif function is aten.nonzero.default:
            self._wait(args[0], function)
            return args[0].new_zeros((FOUND, args[0].dim()), dtype=torch.int64)
        elif function in (aten.masked_select.default, aten._unique2.default, torch.ops.torchvision.nms.default):
            self._wait(args[0], function)
            return args[0].new_zeros(FOUND, dtype=args[0].dtype if function is aten.masked_select.default else torch.int64)
        return function(*args, **kwargs)

    def copy(self) -> "Counts":
        """Returns what has been counted so far."""
        copied = Counts()
        copied.operations, copied.waits, copied.bytes = self.operations.copy(), self.waits.copy(), self.bytes.copy()
        return copied

    def __sub__(self, earlier: "Counts") -> "Counts":
        """Returns what has been counted since."""
        since = self.copy()
        for name in ("operations", "waits", "bytes"):
            getattr(since, name).subtract(getattr(earlier, name))
            setattr(since, name, +getattr(since, name))
        return since

    def take(self, batch: Batch) -> Batch:
        """Puts a batch on the device, as the loader's thread does, ahead of the step."""
        arrays = {name: value for name in ("images", "draws") if (value := getattr(batch, name)) is not None}
        self.bytes[AHEAD] += sum(array.nbytes for array in arrays.values())
        types = {name: torch.from_numpy(array[:0]).dtype for name, array in arrays.items()}
        made: dict[str, Any] = {name: torch.empty(array.shape, dtype=types[name], device=DEVICE) for name, array in arrays.items()}
        return batch._replace(**made)

    def _copy(self, function: Any, tensor: Tensor, target: torch.device, kwargs: dict[str, Any]) -> Any:
        self._count_copy(tensor, target, kwargs.get("non_blocking", False), function)
        if tensor.is_cuda and target.type == "cpu":
            with _disable_current_modes():
                return torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
        return function(tensor, **kwargs | {"device": target})

    def _count_copy(self, tensor: Tensor, target: torch.device, non_blocking: bool, function: Any) -> None:
        if tensor.device.type == target.type:
            return
        ahead = target.type == "cuda" and non_blocking and hasattr(tensor, PINNED)
        self.bytes[AHEAD if ahead else WAITING] += tensor.nbytes
        if not ahead:
            self.waits[f"{function} at {_place()}"] += 1

    def _wait(self, tensor: Tensor, function: Any) -> None:
        if tensor.device.type == "cuda":
            self.waits[f"{function} at {_place()}"] += 1

    def _without_masks(self, function: Any, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replaces masks, whose number of true elements the host would wait for, by positions."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                found.append(index)
            else:
                self._wait(index, function)
                found += [index.new_zeros(FOUND, dtype=torch.int64)] * index.dim()
        return found


def _place() -> str:
    """Returns the innermost line of the project's code that is being executed."""
    frame: Any = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class _Absent(backend_registration._DummyBackendModule):
    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0


class _AbsentHook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


@cache
def _hide_accelerator() -> None:
    """Registers an accelerator that is not there, for good."""
    backend_registration._setup_privateuseone_for_python_backend("absent", _Absent(), _AbsentHook())


class _Generator(torch.Generator):
    device = DEVICE

    def __new__(cls, device: object = None) -> "_Generator":
        return super().__new__(cls)


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copies a fake tensor, which has no storage that could be copied."""
    copied = tensor.detach().clone()
    memo[id(tensor)] = made = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return made


def _numpy(tensor: Tensor) -> npt.NDArray[np.int64]:
    """Returns a permutation, in place of one that does not exist, for processes to exchange rows by."""
    assert tensor.device.type == "cpu" and tensor.dtype == torch.int64
    return np.random.default_rng(0).permutation(tensor.numel())


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Moves or converts a module by new parameters, since torch cannot exchange those of fake tensors in place."""
    for part in module.modules():
        part._parameters |= {
            name: nn.Parameter(function(one.detach()), one.requires_grad) for name, one in part._parameters.items() if one is not None
        }
        part._buffers |= {name: function(one) for name, one in part._buffers.items() if one is not None}
    return module


def each_step(task: loop.Trainable, counts: Counts, steps: int) -> list[Counts]:
    """Trains for some steps in the loop of the stages, and returns what was counted from the begin of each step to that of the next."""
    begun: list[Counts] = []
    train_step, batches = task.train_step, task.batches

    def counted(*args: Any) -> loop.Numbers:
        begun.append(counts.copy())
        return train_step(*args)

    def endless(epoch: int, start: int) -> Iterator[Batch]:
        every = itertools.chain.from_iterable(batches(number, start) for number in itertools.count(epoch))
        return itertools.islice(every, steps + 1)

    task.steps_per_epoch = steps + 1
    changes: dict[str, Any] = {"train_step": counted, "batches": endless, "end_epoch": lambda epoch: {}}
    with patch.multiple(task, **changes):
        loop.Trainer(task, "counts", None, 1, Runtime()).run()
    return [later - earlier for earlier, later in itertools.pairwise(begun)]


@contextmanager
def fake_cuda() -> Iterator[Counts]:
    """Puts all tensors that a stage makes on a fake GPU, and counts."""
    _hide_accelerator()
    counts = Counts()
    with ExitStack() as stack:
        for context in (
            patch.dict(fake_tensor._DISPATCH_META_HANDLERS, {torch.ops.prim.device.default: counts.device_of}),
            patch("torch.autograd._engine_run_backward", counts.run_engine),
            patch("torch.cuda.is_bf16_supported", lambda *_: True),
            patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            patch("torch.Generator", _Generator),
            patch.object(fake_tensor.FakeTensor, "tolist", lambda tensor: _tolist(tensor.cpu())),  # one copy, not one per element
            patch.object(fake_tensor.FakeTensor, "numpy", _numpy),
            patch.object(fake_tensor.FakeTensor, "__deepcopy__", _deepcopy),
            patch.object(nn.Module, "_apply", _apply),
            patch.object(devices, "set_up", lambda device, seed: DEVICE),
            patch.object(devices, "on_device", lambda batches, device: map(counts.take, batches)),
            torch.autograd.set_multithreading_enabled(False),
            MODE,
            counts,
        ):
            stack.enter_context(context)
        yield counts


@contextmanager
def collectives(counts: Counts, nodes: int, size: int) -> Iterator[None]:
    """Makes this process believe that it is the first of several; collectives count the bytes that it hands to them, and do nothing."""
    node = processes.Node(size, group=object() if nodes > 1 else None)  # type: ignore[arg-type]

    def count(*tensors: Any, group: object = None, **_: object) -> None:
        place = WITHIN if nodes == 1 or group else BETWEEN
        counts.bytes[place] += max((each.nbytes for each in tensors if isinstance(each, Tensor)), default=0)

    names = ("all_reduce", "all_to_all_single", "all_gather_into_tensor", "broadcast", "broadcast_object_list")
    counted: dict[str, Any] = dict.fromkeys(names, count)
    with (
        patch.multiple(dist, **counted),
        patch.multiple(processes, world_size=lambda: nodes * size, _node=node, any_rank=lambda *flags: list(flags)),
    ):
        yield
