"""Files below a local folder, also behind symbolic links."""

import heapq
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from components.common.errors import UserError

_SPECIAL = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

_LINKED = "{out}: lies inside {folder}, a linked folder whose files are all read; choose another --out"


class Entry(NamedTuple):
    """A file in a listing."""

    path: str  # path relative to the listed folder, with forward slashes
    size: int  # number of bytes
    version: str  # changes with the content: the modification time, or the ETag
    fault: str = ""  # why it has no content: a link that leads nowhere or back, or neither file nor folder
    modified: float = 0.0  # time of the last change, in seconds since 1970


def walk_folder(top: str, apart_from: str = "") -> Iterator[Entry]:
    """Yields all files below a folder, in no particular order, and what has no content as entries with a fault.

    Links are followed, but each folder is read once: under its own path if it lies below `top`, else under the first link to it, in the
    order of their paths. Otherwise an image could get two ids, and stand in two splits.

    Raises:
        UserError: a folder cannot be read, or a linked one holds `apart_from`.
    """
    holding = _identities(Path(apart_from).resolve(), Path(apart_from).parent.resolve()) if apart_from else set()
    read: set[tuple[int, int]] = set()
    pending, links = [""], list[str]()
    while pending or links:
        below = pending.pop() if pending else heapq.heappop(links)
        above: set[tuple[int, int]] = set()
        try:
            if (identity := _identity(Path(top, below).stat())) in read:
                yield Entry(below.removesuffix("/"), 0, "", "a folder that is read under another path")
                continue
            read.add(identity)
            with os.scandir(Path(top, below)) as found:
                for entry in found:
                    path = f"{below}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{path}/")
                        continue
                    info, fault = _look_at(entry)
                    if stat.S_ISDIR(info.st_mode):
                        above = above or _identities(*_steps(top, below))
                        if _identity(info) not in above:
                            if _identity(info) in holding:
                                raise UserError(_LINKED.format(out=apart_from, folder=Path(top, path)))
                            heapq.heappush(links, f"{path}/")
                            continue
                        fault = "a link to a folder that it lies in"
                    yield Entry(path, 0, "", fault) if fault else Entry(path, info.st_size, str(info.st_mtime_ns), "", info.st_mtime)
        except OSError as error:
            raise UserError(f"{error.filename or Path(top, below)}: cannot be read ({error.strerror})") from None


def walk_without_links(top: str) -> Iterator[Entry]:
    """Yields all files below a folder, in no particular order, and links and what is neither file nor folder as entries with a fault.

    Raises UserError if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    for folder, folders, names in os.walk(top, onerror=refuse):
        for path in (Path(folder, name) for name in (*folders, *names)):
            with suppress(FileNotFoundError):
                info = path.lstat()
                if not stat.S_ISDIR(info.st_mode):
                    fault = "a link" if stat.S_ISLNK(info.st_mode) else _SPECIAL.get(stat.S_IFMT(info.st_mode), "")
                    yield Entry(path.relative_to(top).as_posix(), info.st_size, str(info.st_mtime_ns), fault, info.st_mtime)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _look_at(entry: "os.DirEntry[str]") -> tuple[os.stat_result, str]:
    """Returns the state of what an entry is or links to, and why it has no content; raises OSError if it is no link."""
    try:
        info = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        return entry.stat(follow_symlinks=False), f"a link that cannot be followed ({error.strerror})"
    return info, _SPECIAL.get(stat.S_IFMT(info.st_mode), "")


def _steps(top: str, below: str) -> list[Path]:
    """Returns the real paths of the folders on the way from `top` to `below`."""
    names = below.split("/")[:-1]
    return [Path(top, *names[:count]).resolve() for count in range(len(names) + 1)]


def _identities(*folders: Path) -> set[tuple[int, int]]:
    """Identifies folders and those that hold them, as far as they exist, by device and inode."""
    every = {path for folder in folders for path in (folder, *folder.parents)}
    return {_identity(path.stat()) for path in every if path.exists()}
