import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import integrity, storage
from components.common.runs.shards import open_shards
from tests.conftest import MakeShards


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "_known", set())


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed, as often as they are."""
    names: list[str] = []
    original = storage.digest_stream

    def digest(file: BufferedReader) -> str:
        names.append(Path(file.name).name)
        return original(file)

    monkeypatch.setattr(storage, "digest_stream", digest)
    return names


def flip_a_bit(shards: Path) -> None:
    part = shards / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def keep_three_rows(shards: Path) -> None:
    pq.write_table(pq.read_table(shards / "part-00001.parquet").slice(0, 3), shards / "part-00001.parquet")


def copy_another_part(shards: Path) -> None:
    shutil.copyfile(shards / "part-00000.parquet", shards / "part-00001.parquet")


def copy_with_times(shards: Path) -> None:
    """Replaces a part by bytes of the same size, and sets its times back."""
    info = (shards / "part-00001.parquet").stat()
    flip_a_bit(shards)
    os.utime(shards / "part-00001.parquet", ns=(info.st_atime_ns, info.st_mtime_ns))


CHANGES = (flip_a_bit, keep_three_rows, copy_another_part, copy_with_times)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read_before", [False, True])
def test_a_changed_part_is_refused(change: Callable[[Path], None], read_before: bool, make_shards: MakeShards) -> None:
    folder = Path(make_shards())
    if read_before:
        open_shards(str(folder)).table(["split"])
    change(folder)
    with pytest.raises(UserError, match=r"part-00001\.parquet: does not match the digest in manifest\.json; restore it or run preprocess"):
        open_shards(str(folder)).table(["split"])


@pytest.mark.parametrize("stage", ["pretrain", "classify", "detect", "invert"])
def test_every_stage_checks(stage: str, make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(make_shards())
    flip_a_bit(folder)
    options = ["--params", os.devnull, "--set", f"{stage}.arch=resnet18", "--set", "invert.size=32"]
    assert main([stage, "--shards", str(folder), "--out", str(tmp_path / "out"), *options]) == 2
    assert "part-00001.parquet: does not match the digest in manifest.json" in capsys.readouterr().err


def test_each_part_is_hashed_once(make_shards: MakeShards, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, parts = make_shards(), ["part-00000.parquet", "part-00001.parquet"]
    hashed.clear()
    for _ in range(3):
        open_shards(folder).table(["split"])
    assert hashed == parts
    monkeypatch.setattr(integrity, "_known", set())  # another process
    open_shards(folder).table(["split"])
    assert hashed == parts
    os.utime(Path(folder, parts[0]))
    open_shards(folder).table(["split"])
    assert hashed == [*parts, parts[0]]


def test_processes_share_what_they_checked(make_shards: MakeShards, hashed: list[str]) -> None:
    folder = make_shards()
    code = f"from components.common.runs.shards import open_shards; open_shards({folder!r}).table(['split'])"
    subprocess.run([sys.executable, "-c", code], check=True)
    hashed.clear()
    open_shards(folder).table(["split"])
    assert hashed == []


def test_without_a_writable_cache_each_process_hashes(
    make_shards: MakeShards, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    folder = make_shards()
    hashed.clear()
    for _ in range(2):
        open_shards(folder).table(["split"])
    assert len(hashed) == 2


def test_the_memory_does_not_grow_for_ever(make_shards: MakeShards, hashed: list[str], tmp_path: Path) -> None:
    memory = tmp_path / "cache" / integrity.MEMORY
    memory.parent.mkdir()
    memory.write_text("x\n" * (integrity._MOST_BYTES // 2 + 1))
    folder = make_shards()
    hashed.clear()
    open_shards(folder).table(["split"])
    assert memory.read_text().count("\n") == 2
    assert len(hashed) == 2


def test_a_missing_part_is_named(make_shards: MakeShards) -> None:
    folder = Path(make_shards())
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet: cannot be read \(No such file or directory\)"):
        open_shards(str(folder)).table(["split"])
