"""The exceptions that mean "the user can mend this" and "try again", and the errors of disks that are turned into them."""

import errno
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class UserError(ValueError):
    """A mistake in what was given, or a server that cannot be reached: the command line prints it and exits with 2.

    The message is one sentence that names the file, key or address and says what to do.
    """

    temporary = False  # whether the same command may succeed later, without any change
    repeats = False  # whether it took a computation to find out that the same parameters and inputs end like this


class TemporaryError(UserError):
    """A server that does not answer at present, or a lock that another process holds: a step of a pipeline tries again."""

    temporary = True


class RepeatingError(UserError):
    """A computation that fails, such as by a loss that is not finite: a pipeline does not begin the same one again."""

    repeats = True


class SharedError(UserError):
    """A mistake that all processes of a training know of: one of them, of rank 0, says so."""

    def __init__(self, message: str, temporary: bool = False, repeats: bool = False):
        super().__init__(message)
        self.temporary, self.repeats = temporary, repeats


_FREE_SPACE = "free some space there and run the same command again"
_CHECK_ACCESS = "change the permissions or choose another path"
_CHECK_DISK = "check the disk and run the same command again"
_OPEN_FILES = "raise the limit (ulimit -n) or lower runtime.workers"

DISK_ERRORS = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit (ulimit -f) or choose a disk that takes larger files",
    errno.EROFS: "choose another path",
    errno.EACCES: _CHECK_ACCESS,
    errno.EPERM: _CHECK_ACCESS,
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.EIO: _CHECK_DISK,
    errno.ESTALE: _CHECK_DISK,
    errno.ENODEV: _CHECK_DISK,
    errno.ENXIO: _CHECK_DISK,
}
"""Error number -> what to do about it."""

_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


@contextmanager
def disk_errors(*places: Path | str) -> Iterator[None]:
    """Turns an error of the disk in this block, such as no space left, into a UserError.

    Libraries wrap these errors in exceptions of their own, so that the number of the error decides, not the type. If the error names
    no file, the message names the place, among those that the block writes to, with the least free space.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, name = _cause(error)
        if number not in DISK_ERRORS:
            raise
        place = name or min(places, key=_free)
        raise UserError(f"{place}: {os.strerror(number).lower()}; {DISK_ERRORS[number]}") from None


def temporary_folder() -> str:
    """Returns the folder of temporary files; raises UserError if none can be written, as on a full disk."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        place = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - only named
        raise UserError(f"{place}: holds no more temporary files; free some space there or set TMPDIR to another disk") from None


BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)


def _cause(error: BaseException) -> tuple[int | None, str | None]:
    """Returns the error number and the file name of an exception, or of the one that it was raised from or while handling."""
    found: BaseException | None = error
    while found and not isinstance(found, BUGS):  # such an error arose while one of the disk was handled, and must not be hidden
        if isinstance(found, OSError) and found.errno:
            return found.errno, found.filename2 or found.filename
        if isinstance(found, sqlite3.Error) and hasattr(found, "sqlite_errorcode"):
            return _SQLITE.get(found.sqlite_errorcode & 0xFF), None  # the lower byte of an extended code is the primary one
        if number := re.search(r"\(os error (\d+)\)", str(found)):  # safetensors and others that are written in Rust
            return int(number[1]), None
        if quoted := re.search(r"\[Errno (\d+)\].*", str(found)):  # MLflow's downloads; of two files, the second is written
            return int(quoted[1]), (re.findall("'([^']+)'", quoted[0]) or [None])[-1]
        found = found.__cause__ or found.__context__
    return None, None


def _free(place: Path | str) -> int:
    """Returns the free bytes on the disk of a path, which need not exist."""
    path = Path(place).absolute()
    for existing in (path, *path.parents):
        with suppress(OSError):
            info = os.statvfs(existing)
            return info.f_bavail * info.f_frsize
    return 0
