from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.common import interrupt, loop
from components.common.errors import UserError
from components.common.job import Job, open_job
from components.common.params import Params
from components.common.reader import Batch


class Counting(loop.Task):
    """Adds up row numbers: what it has seen is its state."""

    batch_size, steps_per_epoch = 2, 5

    def __init__(self, stop_at: int = -1, nan_at: int = -1):
        self.seen: list[int] = []
        self.stop_at, self.nan_at = stop_at, nan_at

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            yield Batch(np.zeros((2, 1, 1), np.uint8), np.array([10 * epoch + step, 0]))

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        self.seen.append(int(batch.rows[0]))
        if len(self.seen) == self.stop_at:
            interrupt._stop.set()
        return {"loss": float("nan") if len(self.seen) == self.nan_at else float(self.seen[-1]), "progress": progress}

    def state(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return open_job("pretrain", str(tmp_path / "out"), Params().pretrain, {})


def fit(task: Counting, job: Job) -> list[dict[str, float]]:
    rows = loop.Fit(task, job, epochs=3, checkpoint_minutes=60).run(lambda metrics, step: None)
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 10, 14])
def test_a_stop_at_any_step_changes_neither_steps_nor_averages(job: Job, stop_at: int) -> None:
    whole = [10 * epoch + step for epoch in range(3) for step in range(5)]
    with pytest.raises(interrupt.Interrupted):
        fit(Counting(stop_at=stop_at), job)
    interrupt._stop.clear()
    task = Counting()
    rows = fit(task, job)
    assert task.seen == whole
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["loss"] for row in rows] == [np.mean(whole[:5]), np.mean(whole[5:10]), np.mean(whole[10:])]
    assert [row["progress"] for row in rows] == pytest.approx([np.mean(np.arange(5) / 15 + third / 3) for third in range(3)])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_key(job: Job) -> None:
    with pytest.raises(UserError, match=r"the loss is nan at step 6; lower pretrain\.lr"):
        fit(Counting(nan_at=7), job)


def test_learning_rate_rises_and_falls() -> None:
    assert [loop.cosine(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [loop.cosine(x, warmup=0.2) for x in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535)])
def test_pixels_become_fractions_of_the_full_range(dtype: type, full: int) -> None:
    images = np.array([[[0, full], [full // 5, 1]]], dtype)
    tensor = loop.to_unit(images, torch.device("cpu"))
    assert tensor.shape == (1, 1, 2, 2)
    assert tensor.flatten().tolist() == pytest.approx([0.0, 1.0, 0.2, 1 / full])


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        loop.set_up("cuda", 0)
