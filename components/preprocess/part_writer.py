"""Writes one part of the shards: the rows of its files, and a note about each file for the merge.

A part is done when its notes exist. An interrupted one is restarted and ends with the same bytes; the file that was in progress is
then read in a child process, and quarantined if it crashes its decoder or makes it hang.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from components.common.errors import disk_errors
from components.common.formats import shards
from components.common.formats.atomic import replaced
from components.common.formats.quarantine import Reason
from components.common.runs import storage
from components.preprocess.parts import Part
from components.preprocess.prefetch import Contents, contents
from components.preprocess.rows import Context, Note, Row, process_files

Callbacks = tuple[Callable[[], bool], Callable[[], object], Callable[[], object]]  # `stopping`, `advance` and `wait` of `process_part`


class Attempts:
    """A file with one line per attempt at a part: the number of the raw file that it began last."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._offset = os.fstat(self._descriptor).st_size
        self.suspects = set(last_files(path))  # raw files that ended an attempt, or were in progress when it was ended

    def begin(self, number: int) -> None:
        """Records that a raw file is begun; the kernel keeps the line if this process dies."""
        os.pwrite(self._descriptor, b"%012d\n" % number, self._offset)

    def close(self) -> None:
        """Ends this attempt."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Removes the file once the part is done."""
        self._path.unlink()


def last_files(path: Path) -> list[int]:
    """Reads the number of the raw file that each attempt at a part began last."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


class Stopped(Exception):  # noqa: N818 - what was asked for, not a failure
    """The part was left unfinished on request."""


def process_part(
    context: Context, part: Part, stopping: Callable[[], bool], advance: Callable[[], object], wait: Callable[[], object]
) -> None:
    """Turns the files of a part into a Parquet file and notes; does nothing if they exist.

    `stopping` is called before each step of a file, `advance` after each file, and `wait` before a file is fetched, which has no time
    limit. Raises Stopped if `stopping` returns true, and UserError for a mistake in a label or box, or a file that cannot be read.
    """
    if is_done(context.folder, part):
        return
    with disk_errors(context.folder), closing(Attempts(context.folder / part.attempts_name)) as attempts:
        with replaced(context.folder / part.notes_name) as scratch, scratch.open("w", encoding="utf-8") as notes:
            shards.write_part(context.folder / part.name, _rows(context, part, notes, attempts, (stopping, advance, wait)))
            notes.flush()
            os.fsync(notes.fileno())
        attempts.remove()


def is_done(folder: Path, part: Part) -> bool:
    """Whether a part was finished by an earlier run."""
    return (folder / part.notes_name).is_file()


def read_notes(folder: Path, part: Part) -> Iterator[Note]:
    """Yields the notes of a finished part in the order of its files."""
    with (folder / part.notes_name).open(encoding="utf-8") as file:
        for line in file:
            yield Note(**json.loads(line))


def _rows(context: Context, part: Part, notes: IO[str], attempts: Attempts, callbacks: Callbacks) -> Iterator[Row]:
    """Yields the rows of a part, and writes one line per file to `notes`."""
    stopping, advance, wait = callbacks
    for path, fault in context.index.faults(part.number):
        note = Note(path, storage.digest(b""), None, Reason.NOT_A_FILE.value, fault)
        notes.write(json.dumps(vars(note)) + "\n")
        advance()

    def fetch(files: Contents) -> Iterator[tuple[str, bytes]]:
        for file, content in files:
            yield file.path, content
            wait()

    def begin(number: int) -> None:
        if stopping():
            raise Stopped
        attempts.begin(number)

    with closing(contents(context.raw, context.index.files(part.number))) as files:
        for row, note in process_files(context, fetch(files), begin, attempts.suspects):
            notes.write(json.dumps(vars(note)) + "\n")
            if row:
                yield row
            advance()
