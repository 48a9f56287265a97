"""Reading from and writing to a real S3 server, with and without injected failures."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.__main__ import main
from components.common.runs import storage
from components.common.runs.shards import open_shards
from components.preprocess import prefetch
from components.preprocess.index import File
from tests import faults, seaweed
from tests.common.dicom.phantoms import picture, write
from tests.preprocess.test_run import KEY, arguments, digests_of, write_cohort

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as environment:
        yield environment


@pytest.fixture
def prefix(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix for each test, whose work in progress is kept in `tmp_path`."""
    for name, value in {**server, "CXR_PSEUDONYM_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    storage._client_of.cache_clear()
    yield f"s3://{seaweed.BUCKET}/{request.node.name}"
    storage._client_of.cache_clear()


@pytest.fixture
def raw(tmp_path: Path, prefix: str) -> Path:
    """A cohort, both local and on S3."""
    folder = tmp_path / "raw"
    write_cohort(folder)
    (folder / "copy.dcm").write_bytes((folder / "p3" / "0.dcm").read_bytes())
    (folder / "labels.csv").write_text("image,Mass\n" + "".join(f"p{n}/0.dcm,{n % 2}\n" for n in range(12)))
    for entry in storage.walk(str(folder)):
        storage.write(f"{prefix}/raw/{entry.path}", (folder / entry.path).read_bytes())
    return folder


def on_s3(tmp_path: Path, prefix: str, *overrides: str, out: str = "out") -> list[str]:
    command = arguments(tmp_path, *overrides)
    command[command.index("--raw") + 1] = f"{prefix}/raw"
    command[command.index("--out") + 1] = f"{prefix}/{out}"
    return command


def digests_at(uri: str) -> dict[str, str]:
    return {entry.path: storage.digest(storage.read(f"{uri}/{entry.path}")) for entry in storage.walk(uri) if entry.path != "run.json"}


def test_output_equals_a_local_run_despite_failures(
    tmp_path: Path, prefix: str, raw: Path, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(tmp_path)) == 0
    with faults.serve(server["AWS_ENDPOINT_URL"], period=6) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(storage, "_READ_SECONDS", faults.PATIENCE / 2)
        storage._client_of.cache_clear()
        assert main(on_s3(tmp_path, prefix)) == 0
    assert set(proxy.faults) == set(faults.KINDS), proxy.faults
    monkeypatch.setenv("AWS_ENDPOINT_URL", server["AWS_ENDPOINT_URL"])
    storage._client_of.cache_clear()
    assert digests_at(f"{prefix}/out") == digests_of(tmp_path / "shards")
    opened = open_shards(f"{prefix}/out")
    assert opened.table(["image_id"]).num_rows == opened.manifests[0]["counts"]["rows"] == 24
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "shards", "params.yaml", ".partial"}
    assert not any((tmp_path / ".partial").iterdir())


def test_partitions_in_a_pool(tmp_path: Path, prefix: str, raw: Path) -> None:
    assert main(arguments(tmp_path)) == 0
    for number in range(2):
        assert main([*on_s3(tmp_path, prefix, "workers=2", out=f"p{number}"), "--partition", f"{number}/2"]) == 0
    merge = ["preprocess", "merge", "--shards", f"{prefix}/p1", f"{prefix}/p0", "--out", f"{prefix}/out"]
    assert main([*merge, "--params", str(tmp_path / "params.yaml")]) == 0
    assert digests_at(f"{prefix}/out") == digests_of(tmp_path / "shards")


def test_a_smaller_output_replaces_all_files_of_a_larger_one(tmp_path: Path, prefix: str, raw: Path) -> None:
    assert main(on_s3(tmp_path, prefix, "parts=8")) == 0
    before = {entry.path for entry in storage.walk(f"{prefix}/out")}
    storage.write(f"{prefix}/out/notes/of-the-user.txt", b"mine")
    assert main(on_s3(tmp_path, prefix, "parts=2")) == 0
    after = {entry.path for entry in storage.walk(f"{prefix}/out")}
    manifest = json.loads(storage.read(f"{prefix}/out/manifest.json"))
    assert {name for name in before if name.startswith("part-")} - after
    assert {name for name in after if name.startswith("part-")} == {part["name"] for part in manifest["parts"]}
    assert "notes/of-the-user.txt" in after


def test_a_foreign_prefix_is_refused(tmp_path: Path, prefix: str, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage.write(f"{prefix}/out/thesis.tex", b"")
    assert main(on_s3(tmp_path, prefix)) == 2
    assert f"{prefix}/out: holds objects that preprocess did not make" in capsys.readouterr().err
    assert [entry.path for entry in storage.walk(f"{prefix}/out")] == ["thesis.tex"]
    assert main(on_s3(tmp_path, prefix, out="raw/shards")) == 2
    assert f"{prefix}/raw/shards: lies inside the raw folder" in capsys.readouterr().err


def test_an_upload_that_another_machine_began_is_replaced(tmp_path: Path, prefix: str, raw: Path) -> None:
    assert main(on_s3(tmp_path, prefix)) == 0
    whole = digests_at(f"{prefix}/out")
    storage.delete(f"{prefix}/out/run.json")  # as if the run had been killed while uploading, and its disk lost
    storage.write(f"{prefix}/out/run.json.uploading", b'{"stage": "preprocess", "files": ["part-99999.parquet"]}')
    storage.write(f"{prefix}/out/part-99999.parquet", b"")
    assert main(on_s3(tmp_path, prefix)) == 0
    assert digests_at(f"{prefix}/out") == whole and storage.exists(f"{prefix}/out/run.json")


def test_objects_are_read_ahead_within_bounds(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:03d}" for number in range(40)]
    for name in names:
        storage.write(f"{prefix}/{name}", name.encode() * 100)
    monkeypatch.setattr(prefetch, "MAX_BYTES_AHEAD", 1000)
    asked: list[str] = []

    def listed() -> Iterator[File]:
        for name in names:
            asked.append(name)
            yield File(name, 300)

    for number, (file, content) in enumerate(prefetch.contents(prefix, listed())):
        assert (file.path, content) == (names[number], names[number].encode() * 100)
        assert len(asked) <= number + 5  # three files ahead, and one being listed
    assert asked == names


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "raw"
    for number in range(60):
        write(folder / f"{number}.dcm", picture(600, 500, seed=number), PatientID=f"MRN{number}")
        storage.write(f"{prefix}/raw/{number}.dcm", (folder / f"{number}.dcm").read_bytes())
    assert main(arguments(tmp_path, "parts=16")) == 0
    draws = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-m", "components", *on_s3(tmp_path, prefix, "parts=16", "workers=2")])
        try:
            process.wait(draws.uniform(0, 9))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(on_s3(tmp_path, prefix, "parts=16")) == 0
    assert digests_at(f"{prefix}/out") == digests_of(tmp_path / "shards")
