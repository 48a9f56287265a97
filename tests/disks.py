"""Disks that are full, limited or closed: small file systems in memory, a limit on file size, and programs without root's rights."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_RIGHTS = "-dac_override,-dac_read_search"
RESTRICTED = ["setpriv", f"--bounding-set={_RIGHTS}", f"--inh-caps={_RIGHTS}"] if os.geteuid() == 0 else []
"""Beginning of a command line that runs a program without root's right to open any file."""


@contextmanager
def mounted(folder: Path, size: str, *options: str) -> Iterator[Path]:
    """Mounts a file system in memory at a folder, which is made; `size` as for tmpfs. Skips the test where that is not possible."""
    folder.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let the tests mount a file system")
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


def grow(folder: Path, size: str) -> None:
    """Changes the size of a mounted file system."""
    _run("mount", "-o", f"remount,size={size}", str(folder))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limits the size of the files that this process writes in the block, in bytes; more raises OSError EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_files(folder: Path) -> list[Path]:
    """Returns the files below a folder that this process has open, including deleted ones, whose space is still taken."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, such as that of this listing
            targets.append(link.readlink())
    return [target for target in targets if target.is_relative_to(folder)]


def restricted(*command: str) -> list[str]:
    """Returns a command line that runs without root's right to open any file; skips the test where that is not possible."""
    if RESTRICTED and not shutil.which(RESTRICTED[0]):
        pytest.skip("setpriv of util-linux is not installed")
    return [*RESTRICTED, *command]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
