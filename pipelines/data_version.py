"""Raw files by their version: data.dvc at a git commit names them, the DVC remote has them, a prefix of their own gets them.

In the remote an object's name is its MD5, while preprocess needs paths. So `submit` copies the objects, on the server and once a
version, to ROOT/raw/MD5/PATH; what is there already stays.
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
COPIES = 16
"""At a time."""
REPOSITORY = Path(__file__).parents[1]


class Version(NamedTuple):
    """The raw files of a commit."""

    md5: str
    """Of the folder, as DVC counts it."""
    files: dict[str, str]
    """MD5 by path."""
    remote: str
    """Prefix of the remote's objects."""


def resolve(revision: str, repository: Path = REPOSITORY) -> Version:
    """Reads data.dvc at a git commit, and the listing that it names from the DVC remote.

    Args:
        revision: anything that git takes for a commit.
        repository: where data.dvc is.

    Raises:
        UserError: there is no such commit, file, remote or listing.
    """
    described = yaml.safe_load(_call(["git", "show", f"{revision}:data.dvc"], repository, f"--raw {PREFIX}{revision}"))
    md5 = str(described["outs"][0].get("md5", ""))
    if not md5.endswith(".dir"):
        raise UserError(f"--raw {PREFIX}{revision}: data.dvc names no folder at that commit; use `dvc add data`")
    remote = _remote(repository)
    listing = json.loads(storage.read(_object(remote, md5)))
    return Version(md5.removesuffix(".dir"), {one["relpath"]: one["md5"] for one in listing}, remote)


def materialise(version: Version, root: str) -> str:
    """Copies the files of a version to where preprocess can read them.

    Args:
        version: of `resolve`.
        root: prefix of all outputs.

    Returns:
        The prefix that holds them.

    Raises:
        UserError: the server refuses, or lacks an object.
    """
    target = storage.join(root, "raw", version.md5)
    there = set() if storage.is_empty(target) else {entry.path for entry in storage.walk(target)}
    missing = sorted(set(version.files) - there)
    with ThreadPoolExecutor(COPIES) as pool:
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
    """Address of the default remote."""
    name = _call(["dvc", "remote", "default"], repository, "DVC").strip()
    address = _call(["dvc", "config", f"remote.{name}.url"], repository, "DVC").strip()
    if not storage.is_s3(address):
        raise UserError(f"the DVC remote {name} is {address}, which the cluster cannot read; it must be on S3")
    return address


def _call(command: list[str], folder: Path, what: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{what}: `{command[0]}` is not installed; DVC comes with the extra `dvc` of this package") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"{what}: {said[-1]}; `{' '.join(command)}` must work here")
    return done.stdout
