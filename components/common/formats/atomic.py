"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.common.errors import disk_errors

SCRATCH = ".*"  # pattern of the names of files that are being written; a stopped stage leaves them to the next attempt, which removes them


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path` to write to, which becomes `path` at the end of the block and is removed after an error.

    A block that writes no file leaves none.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            yield scratch
            if scratch.exists():
                scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
