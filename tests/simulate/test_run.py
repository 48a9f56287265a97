import csv
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import storage
from components.params import Params
from components.simulate.run import run
from tests import seaweed

PINNED = "f36de74f0b2edf7ba901dfd780adfbc4bb3a1f22f8fd47d37f9ee64d916e6e7d"
"""SHA-256 of the fixture `cohort`. If it changes, every published cohort changes, including that of data.dvc."""


def _params(**values: int) -> Params:
    return Params.model_validate({"simulate": {"patients": 8, "size": 64, **values}})


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): storage.digest_file(path) for path in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only cohort of eight patients at 64 px."""
    out = tmp_path_factory.mktemp("simulate") / "data"
    run(out=str(out), **_params().arguments("simulate"))
    return out


@pytest.fixture
def copy(cohort: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cohort, tmp_path / "data")


def test_same_bytes_every_time(cohort, tmp_path):
    run(out=str(tmp_path / "again"), **_params().arguments("simulate"))
    assert _digests(tmp_path / "again") == _digests(cohort)


def test_same_bytes_everywhere(cohort):
    digest = hashlib.sha256()
    for name, content in _digests(cohort).items():
        digest.update(f"{name} {content}\n".encode())
    assert digest.hexdigest() == PINNED


def test_larger_cohort_begins_with_the_smaller(cohort, tmp_path):
    run(out=str(tmp_path / "more"), **_params(patients=9).arguments("simulate"))
    small, large = _digests(cohort), _digests(tmp_path / "more")
    assert {name: large[name] for name in small if name.endswith(".dcm")} == {n: c for n, c in small.items() if n.endswith(".dcm")}
    for table in ("labels.csv", "boxes.csv"):
        assert (tmp_path / "more" / table).read_text().startswith((cohort / table).read_text())
    assert any(name.startswith("patient-00008/") for name in large)


def test_tables_name_the_images(cohort):
    headers = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in cohort.rglob("*.dcm")}
    with (cohort / "labels.csv").open() as file:
        labels = {row["image"]: row for row in csv.DictReader(file)}
    with (cohort / "boxes.csv").open() as file:
        boxes = list(csv.DictReader(file))
    assert set(labels) == set(headers)
    assert list(next(iter(labels.values()))) == ["image", "Nodule", "Consolidation", "Effusion", "Cardiomegaly"]
    assert boxes
    for box in boxes:
        image = dcmread(headers[box["image"]], stop_before_pixels=True)
        assert labels[box["image"]][box["label"]] == "1"
        assert 0 <= int(box["x"]) < int(box["x"]) + int(box["width"]) <= image.Columns
        assert 0 <= int(box["y"]) < int(box["y"]) + int(box["height"]) <= image.Rows
        assert max(image.Rows, image.Columns) == 64


def test_no_file_remains_next_to_the_output(cohort):
    assert [path.name for path in cohort.parent.iterdir()] == ["data"]


def test_fills_an_empty_folder(cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    run(out=str(tmp_path / "empty"), **_params().arguments("simulate"))
    assert _digests(tmp_path / "empty") == _digests(cohort)


def test_same_cohort_is_left_alone(copy, caplog):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with caplog.at_level(logging.INFO):
        run(out=str(copy), **_params().arguments("simulate"))
    assert "already" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


@pytest.mark.parametrize("difference", ["extra", "missing", "edited", "seed"])
def test_anything_else_is_refused_and_kept(copy, difference):
    target = copy / "patient-00003" / "image-1.dcm"
    if difference == "extra":
        (copy / "mine.dcm").write_bytes(b"precious")
    if difference == "missing":
        target.unlink()
    if difference == "edited":
        target.write_bytes(target.read_bytes()[:-1] + b"?")
    before = _digests(copy)
    expected = {
        "extra": "mine.dcm is not part",
        "missing": "patient-00003/image-1.dcm is missing",
        "edited": "patient-00003/image-1.dcm differs",
    }
    with pytest.raises(UserError, match=expected.get(difference, "holds something other than this cohort")) as error:
        run(out=str(copy), **_params(seed=int(difference == "seed")).arguments("simulate"))
    assert str(copy) in str(error.value) and "choose another --out" in str(error.value)
    assert _digests(copy) == before


def test_an_output_path_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "params.yaml").write_text("simulate: {patients: 1, size: 64}\n")
    assert main(["simulate", "--out", str(tmp_path / "file"), "--params", str(tmp_path / "params.yaml")]) == 2
    assert capsys.readouterr().err.strip() == f"simulate: {tmp_path / 'file'}: is a file; --out must be a folder"
    assert (tmp_path / "file").read_text() == "precious"


def test_a_stopped_run_leaves_no_partial_cohort(tmp_path):
    (tmp_path / "params.yaml").write_text("simulate: {patients: 1000, size: 64}\n")
    command = [sys.executable, "-m", "components", "simulate", "--out", "data", "--params", "params.yaml"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.dcm")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert [path.name for path in tmp_path.iterdir() if path.name != "params.yaml"] in ([], ["data.partial"])
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a real server."""
    with seaweed.serve(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage._client_of.cache_clear()
        yield f"s3://{seaweed.BUCKET}"
    storage._client_of.cache_clear()


@pytest.mark.services
def test_on_s3_it_continues_an_upload_and_refuses_the_rest(cohort, s3):
    out, first = f"{s3}/cohort", "patient-00000/image-1.dcm"
    storage.write(f"{out}/{first}", (cohort / first).read_bytes())
    for _ in range(2):
        run(out=out, **_params().arguments("simulate"))
        assert {entry.path: storage.digest(storage.read(f"{out}/{entry.path}")) for entry in storage.listing(out)} == _digests(cohort)
    storage.delete(f"{out}/{first}")
    with pytest.raises(UserError, match="is missing"):
        run(out=out, **_params().arguments("simulate"))
    storage.write(f"{s3}/other/mine.dcm", b"precious")
    with pytest.raises(UserError, match="is not part of it"):
        run(out=f"{s3}/other", **_params().arguments("simulate"))
