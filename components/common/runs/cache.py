"""A cache on disk for what is read of shards on S3: small columns, and row groups, which every epoch reads again.

Of all shards it holds the digests of their images (components/common/training/inference.py), which every head writes.
All processes of a node share it. CXR_CACHE_DIR is its folder (default: cxr-cache in the temporary folder), CXR_CACHE_GB its size
limit in 10^9 bytes (default 20; 0 disables the cache). A file is named by the SHA-256 of its part, so that the same shards at another
address are not downloaded again. It holds output of preprocess only: pseudonyms, and the same pixels as the bucket.

The least recently used files are evicted, but none that was used since this process started: an epoch reads each row group once, so
that shards that do not fit would evict all that the next epoch could use.
"""

import fcntl
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from components.common.errors import UserError

DEFAULT_GB = 20.0
_LOCKS = 256  # files that processes lock while one of them downloads

_started = time.time()
_full: set[Path] = set()  # folders without room, for the rest of this process

log = logging.getLogger(__name__)


def table(name: str, fetch: Callable[[], pa.Table], *, required: bool = True) -> pa.Table:
    """Returns what is kept under a name; it is fetched first if necessary, and kept if there is room.

    Raises:
        UserError: the folder cannot be used, although it is required, or `fetch` raises it.
    """
    limit = _limit()
    if not limit:
        return fetch()
    place = _place()
    try:
        path = folder() / name
        with _locked(place / f".{zlib.crc32(name.encode()) % _LOCKS}.lock"):  # one process downloads, the others wait
            if (kept := _read(path)) is not None:
                return kept
            fetched = fetch()
            _keep(path, fetched, limit)
            return fetched
    except OSError as error:
        if not required:
            return fetch()
        reason = error.strerror or str(error)
        raise UserError(
            f"{place}: cannot hold shards ({reason}); set CXR_CACHE_DIR to a disk with more space, or lower CXR_CACHE_GB"
        ) from None


def folder() -> Path:
    """Returns the folder of the cache, which is made if it does not exist; raises OSError."""
    place = _place()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _place() -> Path:
    return Path(os.environ.get("CXR_CACHE_DIR") or Path(tempfile.gettempdir(), "cxr-cache"))


def _read(path: Path) -> pa.Table | None:
    """Reads a kept table; None if there is none, or if it was lost in a crash of the machine."""
    try:
        with pa.OSFile(str(path), "rb") as file:
            kept = pa.ipc.open_file(file).read_all()
        os.utime(path)
        return kept
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _keep(path: Path, fetched: pa.Table, limit: int) -> None:
    """Evicts files to make room, then writes the new one, whole or not at all."""
    if path.parent in _full:
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, fetched.schema) as writer:
        writer.write_table(fetched)
    content = sink.getvalue()
    # The lock is held until the file exists, or two processes could claim the same space.
    with _locked(path.with_name(".lock")):
        if not _make_room(path.parent, limit - content.size):
            _full.add(path.parent)
            log.info("the cache in %s is full: what it cannot hold is read from S3 in every epoch; raise CXR_CACHE_GB (%g) to the "
                     "size of the shards if the disk has room", path.parent, limit / 1e9)  # fmt: skip
            return
        scratch = path.with_name(f".{path.name}.partial")
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _make_room(folder: Path, size: int) -> bool:
    """Evicts files until the rest take at most `size` bytes; returns whether they do."""
    found = []
    for path in folder.iterdir():
        if path.name.endswith(".partial"):
            path.unlink(missing_ok=True)  # left by a killed process: we hold the lock, so nobody is writing
        elif not path.name.startswith("."):
            info = path.stat()
            found.append((info.st_mtime, info.st_size, path))
    total = sum(taken for _, taken, _ in found)
    for used, taken, path in sorted(found):
        if total <= size or used >= _started:
            break
        path.unlink(missing_ok=True)
        total -= taken
    return total <= size


def _limit() -> int:
    """Returns the size limit in bytes."""
    text = os.environ.get("CXR_CACHE_GB", str(DEFAULT_GB))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"CXR_CACHE_GB: {text!r} is not a number of gigabytes; set it to 0 or more")
    return int(value * 1e9)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
