"""A cache on disk for shards on S3, which every epoch reads again. The least recently used files are evicted.

All processes of a node share it. CXR_CACHE_DIR is its folder (default: cxr-cache in the temporary folder), CXR_CACHE_GB its size
limit in 10^9 bytes (default 20; 0 disables the cache). A file is named by its SHA-256, so that the same shards at another address are
not downloaded again. It holds output of preprocess only: pseudonyms, and the same pixels as the bucket.
"""

import fcntl
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from components.common.errors import UserError
from components.common.formats.manifest import MANIFEST
from components.common.runs import storage

DEFAULT_GB = 20.0


def opened(uri: str, sha256: str) -> BinaryIO:
    """Opens the cached object at an s3:// URI with this SHA-256; it is downloaded and checked first if necessary.

    An open file can be read to its end even if it is evicted meanwhile.

    Raises:
        UserError: the object has another digest, cannot be read, or is larger than the limit.
    """
    limit = _limit()
    if not limit:
        return io.BytesIO(_fetch(uri, sha256))
    place = _place()
    try:
        path = folder() / sha256
        with _locked(path.with_name(f".{sha256}.lock")):  # one process downloads, the others wait
            if not path.exists():
                _keep(path, _fetch(uri, sha256), uri, limit)
            os.utime(path)
            return path.open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{place}: cannot hold {uri} ({reason}); set CXR_CACHE_DIR to a disk with more space, or lower CXR_CACHE_GB"
        ) from None


def folder() -> Path:
    """Returns the folder of the cache, which is made if it does not exist; raises OSError."""
    place = _place()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _place() -> Path:
    return Path(os.environ.get("CXR_CACHE_DIR") or Path(tempfile.gettempdir(), "cxr-cache"))


def _fetch(uri: str, sha256: str) -> bytes:
    content = storage.read(uri)
    if storage.digest(content) != sha256:
        raise UserError(f"{uri}: does not match the digest in {MANIFEST}; run preprocess again")
    return content


def _keep(path: Path, content: bytes, uri: str, limit: int) -> None:
    """Evicts files to make room, then writes the new one, whole or not at all."""
    if len(content) > limit:
        size = f"{len(content) / 1e9:.3g}"
        raise UserError(f"CXR_CACHE_GB: {limit / 1e9:g} is less than the size of {uri} ({size}); raise it, or disable the cache with 0")
    # The lock is held until the file exists, or two processes could claim the same space.
    with _locked(path.with_name(".lock")):
        _make_room(path.parent, limit - len(content))
        scratch = path.with_name(f".{path.name}.partial")
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _make_room(folder: Path, size: int) -> None:
    """Evicts the least recently used files until the rest take at most `size` bytes."""
    found = []
    for path in folder.iterdir():
        if path.name.endswith(".partial"):
            path.unlink(missing_ok=True)  # left by a killed process: we hold the lock, so nobody is writing
        elif not path.name.startswith("."):
            info = path.stat()
            found.append((info.st_mtime_ns, info.st_size, path))
    total = sum(taken for _, taken, _ in found)
    for _, taken, path in sorted(found):
        if total <= size:
            return
        path.unlink(missing_ok=True)
        total -= taken


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
