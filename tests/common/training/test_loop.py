import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.common.errors import RepeatingError, TemporaryError, UserError
from components.common.formats.history import VOLATILE
from components.common.runs import signals
from components.common.runs.params import Runtime
from components.common.training import devices, loop, optimization
from components.common.training.progress import Progress, track
from components.common.training.reader import Batch

RUNTIME = Runtime(checkpoint_minutes=60)


class Counting(loop.Trainable):
    """Records the row numbers that it sees; they are its state."""

    batch_size, steps_per_epoch = 2, 5

    def __init__(self, stop_at: int = -1, nan_at: int = -1):
        self.seen: list[int] = []
        self.seen_before_first_step: list[list[int]] = []  # one entry per call
        self.stop_at, self.nan_at = stop_at, nan_at

    def before_first_step(self) -> None:
        self.seen_before_first_step.append(list(self.seen))

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            yield Batch(np.zeros((2, 1, 1), np.uint8), np.array([10 * epoch + step, 0]))

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        self.seen.append(int(batch.rows[0]))
        if len(self.seen) == self.stop_at:
            signals._stop.set()
        return {"loss": float("nan") if len(self.seen) == self.nan_at else float(self.seen[-1]), "progress": progress}

    def state(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def train(trainable: Counting, folder: Path) -> list[dict[str, float]]:
    rows = loop.Trainer(trainable, "pretrain", folder, 3, RUNTIME).run(lambda metrics, step: None)
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 10, 14])
def test_a_stop_at_any_step_changes_neither_steps_nor_averages(folder: Path, stop_at: int) -> None:
    whole = [10 * epoch + step for epoch in range(3) for step in range(5)]
    stopped, trainable = Counting(stop_at=stop_at), Counting()
    with pytest.raises(signals.Interrupted):
        train(stopped, folder)
    signals._stop.clear()
    rows = train(trainable, folder)
    assert (stopped.seen_before_first_step, trainable.seen_before_first_step) == ([[]], []), "it ran once, before any step"
    assert trainable.seen == whole
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["loss"] for row in rows] == [np.mean(whole[:5]), np.mean(whole[5:10]), np.mean(whole[10:])]
    assert [row["progress"] for row in rows] == pytest.approx([np.mean(np.arange(5) / 15 + third / 3) for third in range(3)])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_key(folder: Path) -> None:
    with pytest.raises(RepeatingError, match=r"the loss is nan at step 6; lower pretrain\.lr"):
        train(Counting(nan_at=7), folder)


def test_learning_rate_rises_and_falls() -> None:
    assert [optimization.cosine(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [optimization.cosine(x, warmup=0.2) for x in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535)])
def test_pixels_become_fractions_of_the_full_range(dtype: type, full: int) -> None:
    images = np.array([[[0, full], [full // 5, 1]]], dtype)
    tensor = devices.to_unit(images, torch.device("cpu"))
    assert tensor.shape == (1, 1, 2, 2)
    assert tensor.flatten().tolist() == pytest.approx([0.0, 1.0, 0.2, 1 / full])


class Failing(Counting):
    """Has infinite weights but a finite loss from some step on, or fails the health check from some loss on."""

    def __init__(self, infinite_from: int = 99, unhealthy_from: int = 99, patience: int = 2):
        super().__init__()
        self.infinite_from, self.unhealthy_from, self.patience = infinite_from, unhealthy_from, patience

    def state(self) -> dict[str, Any]:
        weight = float("inf") if len(self.seen) >= self.infinite_from else 1.0
        return {**super().state(), "model": {"weight": torch.tensor([1.0, weight])}}

    def health_check(self, row: dict[str, float]) -> str | None:
        return "it has collapsed" if row["loss"] >= self.unhealthy_from else None


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_weights_that_are_not_finite_are_never_saved(folder: Path) -> None:
    expected = r"^model\.weight is not finite after step 4; lower pretrain\.lr; the last healthy checkpoint is .*000000003\.pt"
    with pytest.raises(RepeatingError, match=expected):
        loop.Trainer(Failing(infinite_from=4), "pretrain", folder, 3, Runtime(checkpoint_minutes=0)).run()
    assert checkpoints(folder) == ["000000002.pt", "000000003.pt"]


def test_weights_are_checked_after_the_last_step(folder: Path) -> None:
    with pytest.raises(RepeatingError, match=r"model\.weight is not finite after step 15"):
        loop.Trainer(Failing(infinite_from=15), "pretrain", folder, 3, Runtime(checkpoint_minutes=60)).run()


def test_unhealthy_epochs_stop_the_run_and_keep_the_last_healthy_checkpoint(folder: Path) -> None:
    # Losses are 0 to 4, 10 to 14 and 20 to 24: the second and third epochs are unhealthy.
    with pytest.raises(RepeatingError, match=r"it has collapsed; the last healthy checkpoint is .*000000005\.pt"):
        loop.Trainer(Failing(unhealthy_from=10), "pretrain", folder, 9, Runtime(checkpoint_minutes=0, keep_checkpoints=3)).run()
    assert checkpoints(folder) == ["000000005.pt", *(f"0000000{step}.doubtful.pt" for step in (12, 13, 14))]


def test_too_few_unhealthy_epochs_do_not_stop_the_run(folder: Path) -> None:
    assert len(loop.Trainer(Failing(unhealthy_from=20), "pretrain", folder, 3, Runtime(checkpoint_minutes=60)).run()) == 3


def test_a_number_of_checkpoints_is_kept(folder: Path) -> None:
    loop.Trainer(Counting(), "pretrain", folder, 1, Runtime(checkpoint_minutes=0, keep_checkpoints=3)).run()
    assert checkpoints(folder) == ["000000003.pt", "000000004.pt", "000000005.pt"]


@pytest.mark.parametrize("kept", [0, 1, 100, 700])
def test_a_corrupt_checkpoint_is_skipped(folder: Path, kept: int) -> None:
    with pytest.raises(signals.Interrupted):
        loop.Trainer(Counting(stop_at=3), "pretrain", folder, 1, Runtime(checkpoint_minutes=0)).run()
    signals._stop.clear()
    newest = folder / "checkpoints" / checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:kept])
    trainable = Counting()
    train(trainable, folder)
    assert trainable.seen == [10 * epoch + step for epoch in range(3) for step in range(5)]


def test_a_disk_without_room_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"checkpoints/000000001\.pt: no space left on device; free some space there"):
        loop.Trainer(Counting(), "pretrain", folder, 1, Runtime(checkpoint_minutes=0)).run()


def test_rates_and_waits_are_in_the_history(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))  # every call advances the clock by one second
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    row = loop.Trainer(Counting(), "pretrain", folder, 1, Runtime(checkpoint_minutes=60)).run()[0]
    assert 0 < row["data_wait"] < 1
    assert 0 < row["images_per_second"] < 10


def test_without_a_terminal_progress_is_logged_in_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("components.common.training.progress.LINE_SECONDS", 0)
    with caplog.at_level("INFO"):
        loop.Trainer(Counting(), "pretrain", folder, 2, Runtime(checkpoint_minutes=60)).run()
        assert list(track("abc", "invert", "reconstructs, batch", 3)) == ["a", "b", "c"]
    assert "invert: reconstructs, batch, 2 of 3" in caplog.text
    assert re.search(r"pretrain: epoch 2/2, step 3/5, loss 12, \d+ img/s, wait \d+%, ETA 0m", caplog.text)


def test_a_line_on_a_gpu_shows_its_load(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Together with the time, the line of a long run still fits into a terminal."""
    for name, value in {"gpu_in_use": True, "utilisation": 0.97, "peak_gib": 60.4}.items():
        monkeypatch.setattr(devices, name, lambda value=value: value)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr("components.common.training.progress.LINE_SECONDS", 0)
    with caplog.at_level("INFO"):
        rows = loop.Trainer(Counting(), "pretrain", folder, 2, RUNTIME).run()
    assert re.search(r"step 3/5, loss 12, \d+ img/s, wait \d+%, GPU 97% 60 GiB, ETA 0m", caplog.text)
    assert rows[0]["gpu_gib"] == 60.4
    assert 0 < rows[0]["gpu_hours"] < rows[1]["gpu_hours"]


def test_gpu_hours_include_those_before_a_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(devices, "peak_gib", lambda: 1.0)
    monkeypatch.setattr(devices, "gpu_in_use", lambda: True)
    monkeypatch.setattr("components.common.training.processes.world_size", lambda: 1)
    clock = iter(range(0, 10**9, 3600))  # every call takes an hour
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with pytest.raises(signals.Interrupted):
        loop.Trainer(Counting(stop_at=7), "pretrain", folder, 3, RUNTIME).run()
    before = loop.checkpoints.load_latest(folder)["gpu_hours"]  # type: ignore[index]
    assert before > 7
    signals._stop.clear()
    rows = loop.Trainer(Counting(), "pretrain", folder, 3, RUNTIME).run()
    assert rows[1]["gpu_hours"] > before + 3
    monkeypatch.setattr(devices, "gpu_in_use", lambda: False)
    (folder / "cpu").mkdir()
    assert {row["gpu_hours"] for row in loop.Trainer(Counting(), "pretrain", folder / "cpu", 1, RUNTIME).run()} == {0}


@pytest.mark.parametrize(("steps", "traced"), [(0, None), (3, 3), (20, 10), (-4, None)])
def test_a_trace_of_some_steps(folder: Path, caplog: pytest.LogCaptureFixture, steps: int, traced: int | None) -> None:
    epochs = 3 if steps >= 0 else 1  # 15 steps, or no more than those before a trace
    expected = train(Counting(), folder)
    (folder / "profiled").mkdir()
    runtime = RUNTIME.model_copy(update={"profile_steps": abs(steps)})
    rows = loop.Trainer(Counting(), "pretrain", folder / "profiled", epochs, runtime).run()
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected[:epochs]]
    path = folder / "profiled" / loop.TRACE
    assert path.exists() == (traced is not None)
    assert ("profile_steps: no trace" in caplog.text) == (steps == -4)
    if traced:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
        assert names >= {f"ProfilerStep#{5 + number}" for number in range(traced)}
        assert len(names) <= traced + 1  # one more may have begun


def test_an_epoch_is_one_line_of_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("classify", epochs=200, steps_per_epoch=1, batch_size=1, silent=True)
    progress._done, progress._started = 1, progress._started - 450_100 / 199
    row = {"epoch": 1, "loss": 0.01234, "val_auroc_macro": 0.87654, "other": 0.1, "images_per_second": 1234.4, "data_wait": 0.126}
    with caplog.at_level("INFO"):
        progress.end_epoch(row, "val_auroc_macro")
    assert caplog.messages == ["classify: epoch 1/200, loss 0.0123, val_auroc_macro 0.877, 1234 img/s, wait 13%, ETA 125h"]
    assert len("09:30:00 ") + len(caplog.messages[0].replace("1/200", "200/200")) <= 100


def test_a_metric_without_a_value_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("pretrain", epochs=1, steps_per_epoch=1, batch_size=1, silent=True)
    progress._done = 1
    with caplog.at_level("INFO"):
        progress.end_epoch({"epoch": 1, "loss": 1, "knn": float("nan"), "images_per_second": 1, "data_wait": 0}, "knn")
    assert caplog.messages == ["pretrain: epoch 1/1, loss 1, 1 img/s, wait 0%, ETA 0m"]


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_on_a_cpu(precision: str, dtype: torch.dtype) -> None:
    with devices.autocast(torch.device("cpu"), precision):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == dtype


@pytest.mark.gpu
def test_batches_are_copied_to_the_gpu_ahead() -> None:
    batches = [Batch(np.full((2, 4, 4), number, np.uint16), np.array([number, 0])) for number in range(5)]
    copied = list(devices.on_device(iter(batches), torch.device("cuda")))
    for ours, theirs in zip(copied, batches, strict=True):
        unit = devices.to_unit(ours.images, torch.device("cuda"))
        torch.testing.assert_close(unit.cpu(), devices.to_unit(theirs.images, torch.device("cpu")))


def test_numbers_are_read_after_the_next_step_has_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device works on a step while the host reads the numbers of the one before; at the end of an epoch none is left."""
    events: list[str] = []
    original = torch.Tensor.tolist

    class Lazy(Counting):
        def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
            events.append(f"step {batch.rows[0]}")
            return {name: torch.tensor(value) for name, value in super().train_step(batch, epoch, progress).items()}

    def tolist(tensor: torch.Tensor) -> object:
        events.append("read")
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    rows = train(Lazy(), folder)
    assert events[:11] == ["step 0", "step 1", "read", "step 2", "read", "step 3", "read", "step 4", "read", "read", "step 10"]
    assert events.count("read") == 15
    assert [row["loss"] for row in rows] == [2, 12, 22]


@pytest.mark.parametrize(("device", "gpus"), [("cuda", ""), ("auto", "8")])
def test_a_step_that_asked_for_gpus_does_not_train_on_the_cpu(
    device: str, gpus: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setenv("CXR_GPUS", gpus)
    monkeypatch.setenv("KFP_RUN_ID", "run")
    with pytest.raises(UserError, match=r"device: a GPU is asked for, but torch .* sees none with no NVIDIA driver; "):
        devices.set_up(device, 0)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n")
    with pytest.raises(UserError, match=r"which needs driver \d+ or newer\) sees none with driver 550\.54\.15; install a newer driver"):
        devices.set_up(device, 0)
    assert devices.set_up("cpu", 0).type == "cpu"


def test_memory_that_does_not_suffice_names_what_to_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Counting):
        less_memory = "raise pretrain.accumulate"

        def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 78 * 2**30)
    with pytest.raises(RepeatingError, match=r"the GPU's 80 GiB of memory do not suffice; raise pretrain\.accumulate"):
        train(Large(), folder)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30 * 2**30)
    with pytest.raises(TemporaryError, match=r"^other processes hold 49 of the GPU's 80 GiB of memory; end them, .* raise pretrain"):
        train(Large(), folder)


def test_a_missing_compiler_is_named_before_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^runtime\.compile: gcc or clang is not installed; install it or set runtime\.compile to false$"):
        devices.require_compiler(torch.device("cuda"))
    with pytest.raises(UserError, match=r"g\+\+ is not installed"):
        devices.require_compiler(torch.device("cpu"))
    for name in ("clang", "c++"):
        (tmp_path / name).touch(0o755)
    devices.require_compiler(torch.device("cuda"))
    monkeypatch.setenv("CXX", "c++")
    devices.require_compiler(torch.device("cpu"))
