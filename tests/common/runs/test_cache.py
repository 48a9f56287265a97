import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.common.errors import UserError
from components.common.runs import cache

LIMIT = 3500  # bytes; a table of 100 numbers takes 1,200


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXR_CACHE_GB", str(LIMIT / 1e9))
    monkeypatch.setattr(cache, "_full", set())
    return tmp_path / "cache"


def get(name: str, log: Path, size: int = 100) -> bool:
    """Reads a table; returns whether it was fetched."""
    expected = pa.table({"x": np.full(size, ord(name))})
    log.touch()
    before = log.stat().st_size

    def fetch() -> pa.Table:
        with log.open("a") as file:
            file.write(name)
        return expected

    assert cache.table(name, fetch).equals(expected)
    return log.stat().st_size > before


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts another process, as far as the cache is concerned."""
    monkeypatch.setattr(cache, "_started", 1e12)
    monkeypatch.setattr(cache, "_full", set())


def test_a_later_process_evicts_the_least_recently_used(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    assert [get(name, log) for name in "abab"] == [True, True, False, False]
    for age, name in enumerate("ba"):  # file system timestamps are coarse
        os.utime(place / name, ns=(0, age))
    restart(monkeypatch)
    assert get("c", log)
    assert kept(place) == ["a", "c"]
    assert sum((place / name).stat().st_size for name in "ac") <= LIMIT


def test_what_does_not_fit_does_not_evict_what_the_process_reads_again(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "components")
    for epoch in range(3):
        assert [get(name, tmp_path / "log") for name in "abcd"] == [not epoch, not epoch, True, True]
    assert [record.message for record in caplog.records] == [
        f"the cache in {place} is full: what it cannot hold is read from S3 in every epoch; raise CXR_CACHE_GB (3.5e-06) to the size "
        "of the shards if the disk has room"
    ]


def test_nothing_is_kept_with_a_bound_of_zero(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", "0")
    assert [get("a", tmp_path / "log") for _ in range(2)] == [True, True]
    assert not place.exists()


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan"])
def test_a_bound_that_is_no_number_is_named(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", value)
    with pytest.raises(UserError, match="CXR_CACHE_GB"):
        get("a", tmp_path / "log")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/below: cannot hold shards .* set CXR_CACHE_DIR"):
        get("a", tmp_path / "log")
    assert cache.table("a", lambda: pa.table({"x": [1]}), required=False)["x"].to_pylist() == [1]


@pytest.mark.parametrize("content", [b"", bytes(1200)])
def test_a_file_that_a_crash_has_emptied_is_fetched_again(content: bytes, place: Path, tmp_path: Path) -> None:
    get("a", tmp_path / "log")
    (place / "a").write_bytes(content)
    assert get("a", tmp_path / "log")
    assert not get("a", tmp_path / "log")


def test_several_processes_fetch_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_GB", "1")
    place.mkdir()
    killed = place / ".a.partial"
    killed.write_bytes(b"half")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=lambda: [get(name, tmp_path / "log") for name in "abcabc"]) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((tmp_path / "log").read_text()) == ["a", "b", "c"]
    assert not killed.exists()
