"""Time a pretraining step against a lower bound and lightly, the IFA term against the authors' loop, and views against albumentations.

    python -m benchmarks.pretrain [--arch resnet18 resnet50] [--size 128] [--batch 32] [--rounds 9]

The floor (lower bound) is the arithmetic that no implementation can avoid: forward and backward pass of the query encoder and forward
pass of the key encoder on ready views. Candidates take turns in every round, so that a change in the machine's speed affects them
alike; ratios are taken within a round, and the tables show their median and quartiles. Our candidates are steps of
components.pretrain.training on ready views; views are timed separately. benchmarks.gpu times whole steps on a GPU. Libraries that are
not installed are left out with a message; `make .venv-bench` installs them.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.pretrain_peers import Floor, albumentations_view, lightly, similarity_loop
from benchmarks.pretrain_term import terms
from benchmarks.timing import Candidates, heading, installed, milliseconds, row, spread, turns, wall_clock
from components.common.formats.shards import SCHEMA, SCHEMA_VERSION, encode
from components.common.runs import storage
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.training import devices
from components.pretrain import augment, objective
from components.pretrain.align import Geometry
from components.pretrain.params import PRESETS, Pretrain
from components.pretrain.training import Pretraining

QUEUE = 4096
TERM_BATCH = 16


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"], choices=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    device = devices.set_up("auto", 0)
    print(f"{options.size} px, batch {options.batch}, {options.rounds} rounds, {device}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        made = make_shards(Path(folder, "small"), options.size, options.batch)
        for arch in options.arch:
            steps(arch, made, options.batch, options.rounds, device)
        terms(max(3, options.rounds // 2), TERM_BATCH, device)
        views(options.rounds, device)


def steps(arch: str, shards: str, batch: int, rounds: int, device: torch.device) -> None:
    """Time a whole step on ready views: encoders, loss, backward pass, optimizer, momentum update, queue."""
    floor, groups = Floor(arch, device), Pretrain().shuffle_groups
    task = pretraining(shards, arch, batch, "moco", 1)
    ready = task._views(next(task.batches(0, 0)), torch.arange(batch))
    pair = ready[0], ready[1]
    looped = stepping(pretraining(shards, arch, batch, "ifa", 1), ready)

    def with_loop() -> None:
        with patch.object(objective, "similarity_map", similarity_loop):
            looped()

    peers = {"lightly's MoCo v2": lightly(arch, task.params.dim, QUEUE, task.params.temperature, pair)} if installed("lightly") else {}
    candidates: Candidates = {
        "floor: query forward and backward, key forward": lambda: floor.step(*pair),
        **peers,
        "moco": stepping(task, ready),
        "moco + ifa": stepping(pretraining(shards, arch, batch, "ifa", 1), ready),
        "moco + aligned ifa": stepping(pretraining(shards, arch, batch, "aligned", 1), ready),
        "moco + ifa as a loop over samples": with_loop,
        f"moco, {groups} groups": stepping(pretraining(shards, arch, batch, "moco", groups), ready),
        f"moco + ifa, {groups} groups": stepping(pretraining(shards, arch, batch, "ifa", groups), ready),
    }
    times = turns(candidates, rounds, wall_clock(device))
    first, plain = times["floor: query forward and backward, key forward"], times["moco"]
    heading(f"step, {arch}", "ms", "over the floor", "over moco")
    for name, values in times.items():
        row(name, f"{milliseconds(values, 1):.1f}", spread(values, first), spread(values, plain))


def pretraining(shards: str, arch: str, batch: int, preset: str, groups: int, queue: int = QUEUE) -> Pretraining:
    """Return the training task of the stage."""
    params = {"arch": arch, "preset": preset, "batch_size": batch, "queue_size": queue, "shuffle_groups": groups, "probe_epochs": 0}
    task = Pretraining(Pretrain.model_validate(params), Runtime(), open_shards([shards]))
    task.start()
    return task


def stepping(task: Pretraining, ready: tuple[Tensor, Tensor, Geometry]) -> Callable[[], object]:
    """Return a training step that always gets the same views."""
    batch = next(task.batches(0, 0))
    task._views = lambda batch, order=None: ready  # type: ignore[method-assign]
    return lambda: task.train_step(batch, 0, 0.0)


def views(rounds: int, device: torch.device, size: int = 512, batch: int = 16) -> None:
    """Time one view of each image."""
    images = np.random.default_rng(0).random((batch, size, size, 1), dtype=np.float32)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

    def ours() -> augment.View:
        drawn = torch.as_tensor(augment.draw(PRESETS["frequent"], np.arange(batch), 0, 0, 0), device=device)
        return augment.view(tensor, drawn, PRESETS["frequent"])

    candidates: Candidates = {"ours": ours}
    if installed("albumentations"):
        change = albumentations_view(size)
        candidates["albumentations"] = lambda: [change(image) for image in images]
    times = turns(candidates, rounds, wall_clock(device))
    heading(f"views at {size} px", "ms", "images/s", "over ours")
    for name, values in times.items():
        each = milliseconds(values, batch)
        row(name, f"{each:.2f}", f"{1000 / each:.0f}", spread(values, times["ours"]))


def make_shards(folder: Path, size: int, images: int) -> str:
    """Write shards of smooth synthetic images, all in the train split."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [_row(rng, size, index) for index in range(images)]
    path = folder / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=100)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "findings": [],
        "size": size,
        "bits": 8,
        "train_pixels": {"count": images * size**2, "mean": 0.5, "std": 0.2},
        "parts": [{"name": path.name, "rows": images, "sha256": storage.digest_file(path)}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.json").write_text(json.dumps({"stage": "preprocess"}))
    return str(folder)


def _row(rng: np.random.Generator, size: int, index: int) -> dict[str, object]:
    coarse = cv2.resize(rng.random((8, 8), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    image = (255 * (coarse + 0.02 * rng.standard_normal((size, size))).clip(0, 1)).astype(np.uint8)
    return {
        **encode(image),
        "image_id": f"{index:032x}",
        "patient_id": f"{index:032x}",
        "split": "train",
        "labels": [],
        "boxes": [],
        "view": "PA",
    }


if __name__ == "__main__":
    main()
