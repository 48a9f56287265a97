"""A copy on disk of what is read from S3 again and again, up to a bound; the least recently used goes first.

Shared by all processes of a node. CXR_CACHE_DIR names the folder (default: cxr-cache in the temporary folder), CXR_CACHE_GB the
bound in 10^9 bytes (default 20; 0: nothing is kept, every read goes to the server). A file is named by its SHA-256, so that the
same shards under another name are not fetched again. Only preprocess's output is kept: pseudonyms, and pixels as in the bucket.
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
from components.common.runs import storage

DEFAULT_GB = 20.0


def opened(uri: str, sha256: str) -> BinaryIO:
    """An object, from the disk if it is there, else fetched, checked and kept.

    Once open, a file may be removed for another's sake: it can be read to its end all the same.

    Args:
        uri: s3://BUCKET/KEY.
        sha256: of the content.

    Raises:
        UserError: the object is not what it should be, cannot be read, or does not fit the bound.
    """
    bound = _bound()
    if not bound:
        return io.BytesIO(_fetch(uri, sha256))
    try:
        path = _folder() / sha256
        with _locked(path.with_name(f".{sha256}.lock")):  # one process fetches, the others wait for it
            if not path.exists():
                _keep(path, _fetch(uri, sha256), uri, bound)
            os.utime(path)
            return path.open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{_folder_name()}: cannot hold {uri} ({reason}); set CXR_CACHE_DIR to a disk with room, or CXR_CACHE_GB") from None


def _fetch(uri: str, sha256: str) -> bytes:
    content = storage.read(uri)
    if storage.digest(content) != sha256:
        raise UserError(f"{uri}: is not what manifest.json describes; run preprocess again")
    return content


def _keep(path: Path, content: bytes, uri: str, bound: int) -> None:
    """Writes a file, whole or not at all, after making room for it."""
    if len(content) > bound:
        raise UserError(f"CXR_CACHE_GB: {bound / 1e9:g} is less than {uri} takes ({len(content) / 1e9:.3g}); raise it, or 0 keeps nothing")
    # Under the lock until the file counts: else two processes would both take the last room.
    with _locked(path.with_name(".lock")):
        _make_room(path.parent, bound - len(content))
        scratch = path.with_name(f".{path.name}.partial")
        scratch.write_bytes(content)
        scratch.replace(path)


def _make_room(folder: Path, size: int) -> None:
    """Removes the files that were not used for longest, until the rest take at most `size` bytes."""
    found = []
    for path in folder.iterdir():
        if path.name.endswith(".partial"):
            path.unlink(missing_ok=True)  # of a process that was killed: we hold the lock, so nobody is writing
        elif not path.name.startswith("."):
            info = path.stat()
            found.append((info.st_mtime_ns, info.st_size, path))
    total = sum(taken for _, taken, _ in found)
    for _, taken, path in sorted(found):
        if total <= size:
            return
        path.unlink(missing_ok=True)
        total -= taken


def _bound() -> int:
    """Bytes that may be kept."""
    text = os.environ.get("CXR_CACHE_GB", str(DEFAULT_GB))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"CXR_CACHE_GB: {text!r} is no number of gigabytes")
    return int(value * 1e9)


def _folder_name() -> Path:
    return Path(os.environ.get("CXR_CACHE_DIR") or Path(tempfile.gettempdir(), "cxr-cache"))


def _folder() -> Path:
    folder = _folder_name()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
