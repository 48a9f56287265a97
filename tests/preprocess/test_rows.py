import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.common.dicom import dicom_file
from components.preprocess import part_writer, rows
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import File, Index
from components.preprocess.labels import Box, Table
from components.preprocess.params import Preprocess
from components.preprocess.rows import Context, process_file, process_files
from tests.common.dicom.phantoms import dataset, picture, to_bytes

CONTEXT = Context("raw", Path("unused"), Preprocess(size=32), Pseudonyms(b"k" * 16), Table(), Index())
FILES = [
    ("a", to_bytes(dataset(picture(seed=1)))),
    ("b", b"ward round notes"),
    ("c", to_bytes(dataset(picture(seed=2), Modality="CT"))),
    ("d", to_bytes(dataset(np.zeros((60, 48), "u1")))),
    ("e", to_bytes(dataset(picture(seed=3)))[:-500]),
    ("f", to_bytes(dataset(picture(seed=4, bits=12)))),
]
A_FILE = 2 * (60 * 48 + 2000)
"""Group size in bytes that is reached after about two files."""


@pytest.mark.parametrize("group_bytes", [1, A_FILE, 2**30])
def test_rows_do_not_depend_on_how_files_are_grouped(group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [process_file(CONTEXT, *file) for file in FILES]
    assert [each.note.reason for each in alone] == [None, "not_dicom", "wrong_modality", "blank_image", "unreadable", None]
    monkeypatch.setattr(rows, "GROUP_BYTES", group_bytes)
    assert list(process_files(CONTEXT, iter(FILES))) == alone


def test_a_group_ends_when_its_files_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "GROUP_BYTES", A_FILE)
    taken = []

    def files() -> Iterator[tuple[str, bytes]]:
        for entry in [FILES[0], FILES[5]] * 6:
            taken.append(entry)
            yield entry

    processed = process_files(CONTEXT, files())
    next(processed)
    assert 1 <= len(taken) < 6


def test_a_group_of_empty_files_ends_too() -> None:
    files = iter([("nothing", b"")] * 10_000)
    next(process_files(CONTEXT, files))
    assert sum(1 for _ in files) > 9_000


def test_the_clock_stands_still_while_a_file_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool kills a process whose clock runs for too long."""
    running, seen = [False], list[bool]()

    def step() -> bool:
        running[0] = True
        return False

    def stand() -> None:
        running[0] = False

    def fetch(raw: str, files: Any) -> Iterator[tuple[File, bytes]]:
        for name, content in FILES:
            seen.append(running[0])
            yield File(name, len(content)), content

    monkeypatch.setattr(part_writer, "contents", fetch)
    this = part_writer.Part(0, len(FILES))
    part_writer.process_part(dataclasses.replace(CONTEXT, folder=tmp_path), this, step, stand, stand)
    assert seen == [False] * len(FILES)
    assert [note.path for note in part_writer.read_notes(tmp_path, this)] == [name for name, _ in FILES]


def test_boxes_follow_pixels_that_are_not_square() -> None:
    boxes = {"a": [Box(2, "Mass", 12, 15, 24, 30)]}
    context = dataclasses.replace(CONTEXT, table=Table(boxes=boxes), params=Preprocess(size=120))
    row = process_file(context, "a", to_bytes(dataset(picture(60, 48), PixelSpacing=["0.2", "0.1"]))).row
    assert row and (row["height"], row["width"], row["source_height"], row["source_width"]) == (120, 48, 60, 48)
    assert row["boxes"] == [{"label": "Mass", "x": 12, "y": 30, "width": 24, "height": 60}]


def test_a_file_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(rows, "render", hungry)
    note = process_file(CONTEXT, *FILES[0]).note
    assert (note.reason, note.detail) == ("unreadable", "needs more memory than any radiograph")


def test_a_crash_is_attributed_to_the_file_begun_last(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, begun = dicom_file.prepare, list[int]()

    def crashing(*arguments: Any) -> Any:
        decode = prepare(*arguments)

        def crash() -> Any:
            if begun[-1] == 3:
                raise KeyboardInterrupt
            return decode()

        return crash

    monkeypatch.setattr(dicom_file, "prepare", crashing)
    with pytest.raises(KeyboardInterrupt):
        list(process_files(CONTEXT, FILES, begun.append))
    assert begun[:6] == [0, 1, 2, 3, 4, 5], "all are opened first"
    assert begun[6:] == [0, 3], "refused files are not begun again"
