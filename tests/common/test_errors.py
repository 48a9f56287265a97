import errno
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from components.__main__ import main
from components.common.errors import DISK_ERRORS, UserError, disk_errors
from components.common.formats.atomic import replaced
from components.common.formats.history import HISTORY, write_history
from components.common.formats.predictions import PREDICTIONS, write_predictions
from components.common.formats.quarantine import write_quarantine
from components.common.formats.shards import encode, write_part
from components.common.runs import storage
from components.common.training import backbones, checkpoints
from components.preprocess.index import Index
from components.preprocess.parts import Partition
from tests import disks

ROOM = 64 * 1024
NOISE = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)


def write_rows(folder: Path) -> None:
    row = {**encode(NOISE), "image_id": "i", "patient_id": "p", "split": "train", "labels": [], "boxes": []}
    write_part(folder / "part-00000.parquet", [row])


def write_index(folder: Path) -> None:
    index = Index()
    index.add_files((storage.Entry(f"{number:0200d}", 1, "") for number in range(2000)), 1, Partition())
    with disk_errors(folder):
        index.save(folder / "index.sqlite")


WRITERS: dict[str, Callable[[Path], None]] = {
    "file": lambda folder: storage.write(str(folder / "file"), NOISE.tobytes()),
    "part": write_rows,
    "quarantine": lambda folder: write_quarantine(
        folder / "quarantine.parquet", [{"path": os.urandom(99).hex(), "reason": "", "detail": ""} for _ in range(2000)]
    ),
    "predictions": lambda folder: write_predictions(folder, [pa.table({"score": np.random.default_rng(0).random(30_000)})]),
    "history": lambda folder: write_history(folder / HISTORY, [{"epoch": epoch, "loss": 1 / 3} for epoch in range(1, 9000)]),
    "checkpoint": lambda folder: checkpoints.save(folder, 7, {"a": torch.from_numpy(NOISE)}, 1),
    "backbone": lambda folder: backbones.export(backbones.build("resnet18"), folder, {}),  # type: ignore[typeddict-item]
    "index": write_index,
}


@contextmanager
def full(folder: Path) -> Iterator[Path]:
    with disks.mounted(folder, str(ROOM)):
        yield folder


@contextmanager
def limited(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    with disks.largest_file(ROOM):
        yield folder


@pytest.mark.parametrize("disk", [full, limited])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_does_not_fit_leaves_nothing_and_is_named(
    writer: str, disk: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with disk(tmp_path / "disk") as folder:
        with pytest.raises(UserError) as refused:
            WRITERS[writer](folder)
        assert not disks.open_files(folder)  # which would keep the space of what is deleted
        left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert str(refused.value).startswith(str(folder))
    assert str(refused.value).count("\n") == 0
    kinds = [errno.ENOSPC] if disk is full else [errno.EFBIG, errno.ENOSPC, errno.EIO]  # SQLite does not tell them apart
    assert any(f": {os.strerror(kind).lower()}; {DISK_ERRORS[kind]}" in str(refused.value) for kind in kinds)
    assert left <= {".index.sqlite"}  # hidden, so that the end of the stage removes it


def test_an_earlier_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / PREDICTIONS
    path.write_text("earlier")
    with pytest.raises(ZeroDivisionError), replaced(path) as scratch:
        scratch.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def image_error(folder: Path) -> None:
    Image.fromarray(NOISE).save(folder / "image.png")


def database_error(folder: Path) -> None:
    database = sqlite3.connect(f"file:{folder / 'data'}?mode=ro", uri=True)
    database.execute("CREATE TABLE t (a)")


@pytest.mark.parametrize(
    ("attempt", "number"),
    [
        (lambda folder: (folder / ("x" * 300)).touch(), errno.ENAMETOOLONG),
        (lambda folder: (folder / "loop" / "x").touch(), errno.ELOOP),
        (lambda folder: save_file({"a": torch.zeros(2**16)}, folder / "weights"), errno.EFBIG),
        (image_error, errno.EFBIG),
        (database_error, errno.EROFS),
    ],
)
def test_errors_that_libraries_wrap_are_recognised(attempt: Callable[[Path], None], number: int, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    sqlite3.connect(tmp_path / "data").execute("CREATE TABLE s (a)")
    with pytest.raises(UserError) as refused, disk_errors(tmp_path), disks.largest_file(ROOM):
        attempt(tmp_path)
    assert str(refused.value).startswith(str(tmp_path))
    assert str(refused.value).endswith(f"{os.strerror(number).lower()}; {DISK_ERRORS[number]}")


def test_too_many_open_files_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r": too many open files; raise the limit \(ulimit -n\)"), disk_errors(tmp_path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_bug_is_not_taken_for_the_error_during_which_it_showed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk_errors(tmp_path):
        try:
            raise PermissionError(errno.EACCES, "denied")
        except PermissionError:
            {}["missing"]


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionError("x"), RuntimeError("x"), FileNotFoundError(2, "x")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), disk_errors(tmp_path):
        raise error


def test_an_error_without_a_name_names_the_fullest_place(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with disks.mounted(small, "1m"), pytest.raises(UserError, match="small: no space left"), disk_errors(tmp_path, small):
        raise OSError(errno.ENOSPC, "")


def test_without_room_for_temporary_files_a_command_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "full")])
    monkeypatch.setenv("TMPDIR", "/full")
    assert main(["preprocess", "--raw", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    sentence = "/full: holds no more temporary files; free some space there or set TMPDIR to another disk"
    assert capsys.readouterr().err == f"preprocess: {sentence}\n"
