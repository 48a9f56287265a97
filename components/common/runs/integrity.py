"""The SHA-256 of shards, checked before they are read.

Each file is hashed once, not once per stage or process: what was checked is remembered by device, inode, size and the times of the last
changes of content and inode, of an object by its entity tag, in this process and in a file of the cache folder (CXR_CACHE_DIR). Where that
cannot be written, every process hashes for itself. An object that was uploaded by this project has its SHA-256 in its metadata, and the
server has compared it with the content, so that it need not be downloaded for that.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST
from components.common.runs import cache, storage

MEMORY = ".checked"  # file in the cache folder with one line per checked file
_MOST_BYTES = 4 * 2**20  # size at which the memory is begun anew: 64,000 files

_known: set[str] = set()


def check(path: Path, sha256: str) -> None:
    """Checks the digest of a file, unless it is known to be right.

    Raises:
        UserError: the file has another digest, or cannot be read.
    """
    try:
        info = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it or run preprocess again") from None
    state = f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {sha256}"
    _check(str(path), state, sha256)


def check_object(uri: str, sha256: str) -> tuple[int, str]:
    """Checks the digest of an object, unless it is known to be right; returns its size and entity tag.

    Raises:
        UserError: the object has another digest, or cannot be read.
    """
    size, etag, claimed = storage.head(uri)
    if claimed is None:
        _check(uri, f"{uri.encode().hex()} {size} {etag} {sha256}", sha256)
    elif claimed != sha256:
        raise _mismatch(uri)
    return size, etag


def _check(uri: str, state: str, sha256: str) -> None:
    """Hashes a file or object, unless it was found to be right in this state."""
    if state in _known:
        return
    with _memory() as remembered:  # one process hashes, the others wait
        if state not in remembered:
            with storage.opened(uri) as file:
                if storage.digest_stream(file) != sha256:
                    raise _mismatch(uri)
            remembered.append(state)
    _known.add(state)


def _mismatch(uri: str) -> UserError:
    return UserError(f"{uri}: does not match the digest in {MANIFEST}; restore it or run preprocess again")


@contextmanager
def _memory() -> Iterator[list[str]]:
    """Yields what any process has checked, locked; what is appended is remembered."""
    try:
        folder = cache.folder()
        file = (folder / MEMORY).open("a+", encoding="ascii", errors="replace")
    except OSError:
        yield []
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read().splitlines()
        count = len(lines)
        yield lines
        if file.tell() > _MOST_BYTES:
            file.truncate(0)
        with suppress(OSError):  # a disk without room only costs the next process the same work
            os.write(file.fileno(), "".join(f"{line}\n" for line in lines[count:]).encode())
