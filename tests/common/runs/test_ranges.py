"""Shards on S3: how many bytes are read of them, and what is refused. `local` stands in for a server, except in the last tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.common.errors import UserError
from components.common.runs import cache, integrity, shards, storage
from components.common.runs.shards import open_shards
from components.common.training import reader
from components.common.training.reader import Reader
from tests import seaweed
from tests.conftest import MakeShards

BATCH = 16
URI = f"s3://{seaweed.BUCKET}/shards"


@pytest.fixture(autouse=True)
def _own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what this process knows, as another process would."""
    for module, name, empty in ((shards, "_footers", {}), (shards, "_objects", {}), (integrity, "_known", set()), (cache, "_full", set())):
        monkeypatch.setattr(module, name, empty)


class Traffic:
    """Counts the bytes that were read of parts."""

    def __init__(self) -> None:
        self.bytes = 0

    def take(self) -> int:
        """Returns the bytes since the last call."""
        taken, self.bytes = self.bytes, 0
        return taken


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    counted, original = Traffic(), storage.read

    def read(uri: str, **options: Any) -> bytes:
        content = original(uri, **options)
        if uri.endswith(".parquet"):
            counted.bytes += len(content)
        return content

    monkeypatch.setattr(storage, "read", read)
    return counted


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes s3://bucket/NAME stand for the folder NAME, as this project has uploaded it."""

    def path(uri: str) -> Path:
        return tmp_path / uri.removeprefix(f"s3://{seaweed.BUCKET}/")

    def read(uri: str, Range: str = "", IfMatch: str = "") -> bytes:
        content = path(uri).read_bytes()
        assert IfMatch in ("", storage.digest(content))
        first, last = map(int, Range.removeprefix("bytes=").split("-")) if Range else (0, len(content))
        return content[first : last + 1]

    def head(uri: str) -> tuple[int, str, str]:
        digest = storage.digest_file(path(uri))
        return path(uri).stat().st_size, digest, digest

    for name, stand_in in (("read", read), ("head", head), ("exists", lambda uri: path(uri).is_file())):
        monkeypatch.setattr(storage, name, stand_in)


def size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("*.parquet"))


def epochs_of_a_node(ranks: int, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Reads three epochs as the processes of a node do; returns the bytes of each."""
    readers = []
    for rank in range(ranks):
        forget(monkeypatch)
        readers.append(Reader(open_shards(URI), "train", rank=rank, ranks=ranks))
    fetched = []
    traffic.take()
    for epoch in range(3):
        for batches in zip(*(one.shuffled(BATCH, 0, epoch) for one in readers), strict=True):
            assert sum(len(batch.rows) for batch in batches) == BATCH
        fetched.append(traffic.take())
    return fetched


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("share", [0, 0.15, 0.5, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_epoch_reads_each_row_group_once(
    ranks: int, share: float, make_shards: MakeShards, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_of(make_shards(images=600, parts=4, group=6))
    monkeypatch.setattr(reader, "SPAN", size // 40)  # a stream has a sixteenth
    monkeypatch.setenv("CXR_CACHE_GB", str(share * size / 1e9))
    fetched = epochs_of_a_node(ranks, traffic, monkeypatch)
    assert max(fetched) <= 1.1 * size
    assert (fetched[-1] == 0) == (share == 3)
    assert (fetched[-1] < 0.95 * fetched[0]) == (share > 0)


@pytest.mark.usefixtures("local")
def test_small_columns_are_read_without_the_pixels(make_shards: MakeShards, traffic: Traffic) -> None:
    folder = make_shards(images=300, parts=1, group=100)
    Reader(open_shards(URI), "val", ("view", "boxes"))
    columns = traffic.take()
    file = pq.ParquetFile(Path(folder, "part-00000.parquet"))
    pixels = sum(file.metadata.row_group(number).column(3).total_compressed_size for number in range(3))
    assert columns < size_of(folder) - pixels + 64 * 2**10  # of the end, which has the footer
    Reader(open_shards(URI), "train", ("view", "boxes"))
    assert traffic.take() == 0


@pytest.mark.usefixtures("local")
def test_a_part_that_is_replaced_is_refused(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Path(make_shards(), "part-00001.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"0")
    with pytest.raises(UserError, match=rf"{URI}/part-00001\.parquet: does not match the digest in manifest\.json"):
        Reader(open_shards(URI), "train")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed.serve(tmp_path_factory.mktemp("weed")) as environment:
        yield environment


@pytest.fixture
def uploaded(make_shards: MakeShards, server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    folder = make_shards(images=600, parts=4, group=6)
    storage.copy_folder(Path(folder), URI, last="run.json")
    return folder


@pytest.mark.services
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_from_a_server_reads_each_row_group_once(
    ranks: int, uploaded: str, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_of(uploaded)
    monkeypatch.setattr(reader, "SPAN", size // 40)
    monkeypatch.setenv("CXR_CACHE_GB", str(0.15 * size / 1e9))
    fetched = epochs_of_a_node(ranks, traffic, monkeypatch)
    assert 0.1 * size < min(fetched) <= max(fetched) <= 1.1 * size


@pytest.mark.services
def test_images_from_a_server_are_those_of_the_folder(uploaded: str) -> None:
    ours, theirs = (Reader(open_shards(place), "train").shuffled(BATCH, 0, 0) for place in (uploaded, URI))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.services
def test_a_part_that_others_uploaded_is_hashed_once(uploaded: str, traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in Path(uploaded).glob("*.parquet"):
        storage.write(f"{URI}/{path.name}", path.read_bytes())  # without a digest
    hashed: list[int] = []
    original = storage.digest_stream
    monkeypatch.setattr(storage, "digest_stream", lambda file: [hashed.append(1), original(file)][1])
    for _ in range(2):
        forget(monkeypatch)
        Reader(open_shards(URI), "train")
    assert len(hashed) == 4
    part = Path(uploaded, "part-00001.parquet").read_bytes()
    storage.write(f"{URI}/part-00001.parquet", part[:-1] + b"0")
    forget(monkeypatch)
    with pytest.raises(UserError, match=r"part-00001\.parquet: does not match the digest in manifest\.json"):
        Reader(open_shards(URI), "train").in_order(8)


@pytest.mark.services
def test_a_part_that_is_replaced_while_it_is_read_is_refused(uploaded: str) -> None:
    batches = Reader(open_shards(URI), "train").in_order(8)
    next(batches)
    for path in Path(uploaded).glob("*.parquet"):
        storage.write(f"{URI}/{path.name}", path.read_bytes()[::-1])
    with pytest.raises(UserError, match=rf"^{URI}/part-0000.\.parquet: was replaced while it was read; run the same command again$"):
        list(batches)
