"""Raw files by version (`--raw dvc:REVISION`): data.dvc at a git commit names them, and the DVC remote holds them.

In the remote the name of an object is its MD5, while preprocess needs paths. `submit` therefore copies the objects, within S3 and
once per version, to ROOT/raw/MD5/PATH.
"""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm import tqdm

from components.common.errors import UserError
from components.common.runs import storage

PREFIX = "dvc:"
PARALLEL_COPIES = 16
REPOSITORY = Path(__file__).parents[1]


class DataVersion(NamedTuple):
    """The raw files at a commit."""

    md5: str  # MD5 of the folder, as computed by DVC
    files: dict[str, str]  # MD5 by path
    remote: str  # prefix of the objects in the remote

    def folder(self, root: str) -> str:
        """Returns the prefix that the files are copied to, below the prefix of all outputs."""
        return storage.join(root, "raw", self.md5)


def resolve(revision: str, repository: Path = REPOSITORY) -> DataVersion:
    """Reads data.dvc at a git commit of the repository, and the listing of its files from the DVC remote.

    Raises:
        UserError: the commit, the file, the remote or the listing does not exist.
    """
    tracked = yaml.safe_load(_call(["git", "show", f"{revision}:data.dvc"], repository, f"--raw {PREFIX}{revision}"))
    md5 = str(tracked["outs"][0].get("md5", ""))
    if not md5.endswith(".dir"):
        raise UserError(f"--raw {PREFIX}{revision}: data.dvc at that commit names no folder; run `dvc add data`")
    remote = _remote(repository)
    listing = json.loads(storage.read(_object(remote, md5)))
    return DataVersion(md5.removesuffix(".dir"), {entry["relpath"]: entry["md5"] for entry in listing}, remote)


def copy(version: DataVersion, root: str) -> str:
    """Copies the files of a version to where preprocess can read them, below `root`, and returns that prefix. Existing files are skipped.

    Raises:
        UserError: the server refuses, or an object is missing.
    """
    target = version.folder(root)
    present = set() if storage.is_empty(target) else {entry.path for entry in storage.walk(target)}
    missing = sorted(set(version.files) - present)
    with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
        copies = [pool.submit(storage.copy, _object(version.remote, version.files[path]), storage.join(target, path)) for path in missing]
        try:
            for done in tqdm(copies, "copying", disable=None):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return target


def _object(remote: str, md5: str) -> str:
    return storage.join(remote, "files", "md5", md5[:2], md5[2:])


def _remote(repository: Path) -> str:
    name = _call(["dvc", "remote", "default"], repository, "DVC").strip()
    address = _call(["dvc", "config", f"remote.{name}.url"], repository, "DVC").strip()
    if not storage.is_s3(address):
        raise UserError(f"the DVC remote {name} is {address}, which the cluster cannot read; it must be on S3")
    return address


def _call(command: list[str], folder: Path, what: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{what}: `{command[0]}` is not installed; install the extra `dvc` of this package") from error
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"{what}: {reason[-1]}; `{' '.join(command)}` must succeed in this repository")
    return done.stdout
