"""`--raw dvc:REVISION`, with a DVC remote on a real S3 server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.runs import storage
from pipelines import data_version
from tests import seaweed

REMOTE, ROOT = f"s3://{seaweed.BUCKET}/dvc", f"s3://{seaweed.BUCKET}/out"


def call(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with DVC."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    folder = tmp_path / "repository"
    folder.mkdir()
    call(folder, "git", "init", "--quiet")
    call(folder, "git", "config", "user.email", "test@localhost")
    call(folder, "git", "config", "user.name", "test")
    call(folder, "dvc", "init", "--quiet")
    return folder


def commit_data(folder: Path, **files: str) -> None:
    (folder / "data" / "below").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / "data" / "below" / name).write_text(content)
    call(folder, "dvc", "add", "--quiet", "data")
    call(folder, "git", "add", "data.dvc", ".dvc/config")
    call(folder, "git", "commit", "--quiet", "--message", "data")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "s3").mkdir()
    with seaweed.serve(tmp_path / "s3") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage._client_of.cache_clear()
        yield
    storage._client_of.cache_clear()


@pytest.mark.services
def test_each_revision_has_its_own_files(repository: Path, server: None) -> None:
    call(repository, "dvc", "remote", "add", "--default", "store", REMOTE)
    commit_data(repository, a="first", b="same")
    commit_data(repository, a="second", c="new")
    call(repository, "dvc", "push", "--quiet", "--all-commits")

    places = [data_version.copy(data_version.resolve(revision, repository), ROOT) for revision in ("HEAD~1", "HEAD")]

    contents = [{entry.path: storage.read(storage.join(place, entry.path)) for entry in storage.walk(place)} for place in places]
    assert contents[0] == {"below/a": b"first", "below/b": b"same"}
    assert contents[1] == {"below/a": b"second", "below/b": b"same", "below/c": b"new"}
    md5 = data_version.resolve("HEAD", repository).md5
    assert f"md5: {md5}.dir" in (repository / "data.dvc").read_text()
    assert places[1] == f"{ROOT}/raw/{md5}"


def test_revisions_that_cannot_be_resolved(repository: Path, tmp_path: Path) -> None:
    commit_data(repository, a="first")
    with pytest.raises(UserError, match="--raw dvc:nowhere: fatal:"):
        data_version.resolve("nowhere", repository)
    with pytest.raises(UserError, match="`dvc remote default` must succeed"):
        data_version.resolve("HEAD", repository)
    with pytest.raises(UserError, match="DVC: `no-such-dvc` is not installed"):
        data_version._call(["no-such-dvc"], repository, "DVC")
    call(repository, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    with pytest.raises(UserError, match="it must be on S3"):
        data_version.resolve("HEAD", repository)
