import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.runs import cache, storage
from components.common.runs.shards import open_shards
from components.common.training.reader import Reader
from tests import seaweed
from tests.conftest import MakeShards


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for a bucket; its file `reads` logs every read."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXR_CACHE_GB", "3e-6")  # 3,000 bytes

    def read(uri: str) -> bytes:
        with (folder / "reads").open("a") as file:
            file.write(f"{Path(uri).name}\n")
        return (folder / Path(uri).name).read_bytes()

    monkeypatch.setattr(storage, "read", read)
    return folder


def put(bucket: Path, name: str, size: int = 1000) -> str:
    content = name.encode() * (size // len(name))
    (bucket / name).write_bytes(content)
    return storage.digest(content)


def get(bucket: Path, name: str, sha256: str) -> bool:
    """Reads an object; returns whether it was fetched from the bucket."""
    log = bucket / "reads"
    log.touch()
    before = len(log.read_text().split())
    with cache.opened(f"s3://bucket/{name}", sha256) as file:
        assert file.read() == (bucket / name).read_bytes()
    return len(log.read_text().split()) > before


def test_the_least_recently_used_goes_first(bucket: Path, tmp_path: Path) -> None:
    a, b, c, d = (put(bucket, name) for name in "abcd")
    assert [get(bucket, name, digest) for name, digest in zip("abc", (a, b, c), strict=True)] == [True, True, True]
    for age, digest in enumerate((c, b, a)):  # file system timestamps are coarse
        os.utime(tmp_path / "cache" / digest, ns=(0, age))
    assert not get(bucket, "c", c)
    assert get(bucket, "d", d)  # evicts b
    assert not get(bucket, "a", a)
    assert not get(bucket, "c", c)
    assert get(bucket, "b", b)
    kept = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in kept) <= 3000


def test_the_same_content_is_fetched_once(bucket: Path) -> None:
    digest = put(bucket, "a")
    (bucket / "copy").write_bytes((bucket / "a").read_bytes())
    assert get(bucket, "a", digest)
    assert not get(bucket, "copy", digest)


def test_a_file_that_is_removed_while_it_is_open_can_be_read(bucket: Path) -> None:
    digest = put(bucket, "a")
    with cache.opened("s3://bucket/a", digest) as file:
        for name in "bcd":
            get(bucket, name, put(bucket, name))
        assert file.read() == (bucket / "a").read_bytes()
    assert get(bucket, "a", digest)


def test_objects_with_a_wrong_digest_are_not_cached(bucket: Path) -> None:
    digest = put(bucket, "a")
    (bucket / "a").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"s3://bucket/a: does not match the digest in manifest\.json"):
        cache.opened("s3://bucket/a", digest)
    put(bucket, "a")
    assert get(bucket, "a", digest)


def test_objects_larger_than_the_cache_are_refused(bucket: Path) -> None:
    digest = put(bucket, "a", 4000)
    with pytest.raises(UserError, match=r"CXR_CACHE_GB: 3e-06 is less than the size of s3://bucket/a "):
        cache.opened("s3://bucket/a", digest)


def test_nothing_is_kept_with_a_bound_of_zero(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", "0")
    digest = put(bucket, "a")
    assert get(bucket, "a", digest)
    assert get(bucket, "a", digest)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan"])
def test_a_bound_that_is_no_number_is_named(bucket: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", value)
    with pytest.raises(UserError, match="CXR_CACHE_GB"):
        cache.opened("s3://bucket/a", "")


def test_a_folder_that_cannot_be_used_is_named(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"file/below: cannot hold s3://bucket/a .* set CXR_CACHE_DIR"):
        cache.opened("s3://bucket/a", put(bucket, "a"))


def test_several_processes_fetch_once_and_stay_within_the_bound(bucket: Path, tmp_path: Path) -> None:
    digests = {name: put(bucket, name) for name in "abc"}
    (tmp_path / "cache").mkdir()
    killed = tmp_path / "cache" / f".{digests['a']}.partial"
    killed.write_bytes(b"half")
    context = multiprocessing.get_context("fork")  # inherits the stand-in for the bucket
    processes = [context.Process(target=lambda: [get(bucket, name, digests[name]) for name in "abcabc"]) for _ in range(4)]
    (bucket / "reads").touch()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((bucket / "reads").read_text().split()) == ["a", "b", "c"]
    assert not killed.exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed.serve(tmp_path_factory.mktemp("weed")) as environment:
        yield environment


@pytest.mark.services
def test_shards_on_s3_are_fetched_once(
    make_shards: MakeShards, server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**server, "CXR_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    folder = make_shards()
    uri = f"s3://{seaweed.BUCKET}/shards"
    storage.copy_folder(Path(folder), uri, last="run.json")

    local, remote = (Reader(open_shards(place), "train") for place in (folder, uri))
    for part in Path(folder).glob("*.parquet"):
        storage.delete(f"{uri}/{part.name}")  # from here on only the cache has it
    for ours, theirs in zip(remote.shuffled(6, 0, 0), local.shuffled(6, 0, 0), strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
    assert len([path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]) == 2
