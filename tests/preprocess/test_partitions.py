"""Partitions and their merge against a single run; files that crash or hang the decoder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.__main__ import main
from components.preprocess import pool
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from components.preprocess.index import Index
from components.preprocess.labels import BOXES, LABELS
from components.preprocess.layouts import table
from components.preprocess.params import Preprocess
from components.preprocess.parts import Part, Partition, parse_partition
from tests.common.dicom.phantoms import dataset, picture, to_bytes, write
from tests.preprocess.test_run import KEY, arguments, digests_of, manifest_of, rows_of, write_cohort


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A cohort with duplicates across parts, refused files, and labels by path and by SOPInstanceUID."""
    folder = tmp_path / "raw"
    write_cohort(folder)
    for number in range(6):
        (folder / f"copy{number}.dcm").write_bytes((folder / "p3" / "0.dcm").read_bytes())
    named = write(folder / "named.dcm", picture(seed=50))
    refused = write(folder / "ct.dcm", Modality="CT")
    names = [named.SOPInstanceUID, refused.SOPInstanceUID, "p0/empty", *(f"p{n}/0.dcm" for n in range(12))]
    (folder / LABELS).write_text("image,Mass\n" + "".join(f"{name},{len(name) % 2}\n" for name in names))
    (folder / BOXES).write_text(f"image,label,x,y,width,height\n{named.SOPInstanceUID},Mass,1,2,3,4\n")
    return folder


def partition(tmp_path: Path, number: int, total: int, *overrides: str) -> int:
    command = arguments(tmp_path, *overrides, out=f"partition{number}")
    return main([*command, "--partition", f"{number}/{total}"])


def merge(tmp_path: Path, *numbers: int, out: str = "merged") -> int:
    folders = [str(tmp_path / f"partition{number}") for number in numbers]
    return main(["preprocess", "merge", "--shards", *folders, "--out", str(tmp_path / out), "--params", str(tmp_path / "params.yaml")])


@pytest.mark.parametrize("total", [1, 5])
def test_merged_partitions_equal_a_single_run(tmp_path: Path, raw: Path, total: int) -> None:
    assert main(arguments(tmp_path)) == 0
    for number in range(total):
        assert partition(tmp_path, number, total) == 0
    before = {number: digests_of(tmp_path / f"partition{number}") for number in range(total)}
    assert merge(tmp_path, *reversed(range(total))) == 0
    assert digests_of(tmp_path / "merged") == digests_of(tmp_path / "shards")
    assert manifest_of(tmp_path / "merged")["counts"]["duplicates"] == 6
    assert {number: digests_of(tmp_path / f"partition{number}") for number in range(total)} == before, "the inputs were changed"
    assert sum(json.loads((tmp_path / f"partition{n}" / "metrics.json").read_text())["files"] for n in range(total)) == 35


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("preprocess"))


def test_unknown_names_are_judged_at_the_merge(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (raw / LABELS).open("a") as file:
        file.write("nobody.dcm,1\n1.2.3.4,0\n")
    for number in range(3):
        assert partition(tmp_path, number, 3) == 0
    message = error_of(capsys, merge(tmp_path, 0, 1, 2))
    assert f"{raw}/labels.csv: names 2 images that are not among the files, first nobody.dcm in line 17" in message
    assert not (tmp_path / "merged").exists()


def test_partitions_that_do_not_fit_together(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (partition(tmp_path, 0, 2), partition(tmp_path, 1, 2, "size=40")) == (0, 0)
    assert "lacks the partitions 1/2; give all 2 of them" in error_of(capsys, merge(tmp_path, 0))
    assert "differs from" in (message := error_of(capsys, merge(tmp_path, 0, 1))) and "in params.size" in message
    assert partition(tmp_path, 1, 2) == 0
    assert "names the partition 0/2 twice" in error_of(capsys, merge(tmp_path, 0, 0, 1))
    part = next((tmp_path / "partition0").glob("part-*.parquet"))
    content = part.read_bytes()
    part.unlink()
    part.write_bytes(content[:-1])
    assert f"{part}: is not what the partition wrote" in error_of(capsys, merge(tmp_path, 0, 1))
    (tmp_path / "partition1" / "run.json").unlink()
    assert "has not finished" in error_of(capsys, merge(tmp_path, 0, 1))


def test_a_partition_has_no_manifest(tmp_path: Path, raw: Path) -> None:
    assert partition(tmp_path, 0, 2) == 0
    assert not (tmp_path / "partition0" / "manifest.json").exists()
    numbers = {int(path.stem.removeprefix("part-")) for path in (tmp_path / "partition0").glob("part-*.parquet")}
    assert numbers <= {0, 2} and numbers


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", "1/", "0.5/2"])
def test_partition_must_be_one_of_n(tmp_path: Path, raw: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, main([*arguments(tmp_path), f"--partition={text}"]))
    assert f"--partition {text}: must be I/N" in message


def test_partitions_are_disjoint_and_whole() -> None:
    assert parse_partition("2/3") == Partition(2, 3)
    owners = [[Partition(number, 3).owns(part) for number in range(3)].count(True) for part in range(50)]
    assert owners == [1] * 50


def test_tables_on_disk_are_those_in_memory(tmp_path: Path, raw: Path) -> None:
    index = Index()
    on_disk, in_memory = table.read(str(raw), Preprocess(), index), table.read(str(raw), Preprocess(), None)
    index.save(tmp_path / "index.sqlite")
    assert repr(dict(on_disk.records)) == repr(dict(sorted(in_memory.records.items())))
    assert dict(on_disk.boxes) == in_memory.boxes and len(on_disk.boxes) == 1
    assert "p0/none" not in on_disk.records


FAILING = """
import os, signal, time
from components.common.dicom import dicom_file
from components.common.runs import child_process
from components.preprocess import pool
from components.common.dicom.elements import text
_prepare = dicom_file.prepare

def prepare(elements, header):
    decode, comment = _prepare(elements, header), text(elements, "PatientComments")

    def fail():
        if comment == "crash the decoder":
            os.kill(os.getpid(), signal.SIGSEGV)
        if comment == "hang the decoder":
            time.sleep(3600)
        return decode()

    return fail

dicom_file.prepare = prepare
child_process.MAX_SECONDS, pool._GRACE_SECONDS = {seconds}, 2
"""


@pytest.mark.parametrize(
    ("word", "detail", "seconds"),
    [("crash", "crashes the decoder", 120), pytest.param("hang", "takes the decoder too long", 12, marks=pytest.mark.slow)],
)
def test_files_that_crash_or_hang_their_decoder_are_quarantined(tmp_path: Path, word: str, detail: str, seconds: int) -> None:
    """Every Python process imports sitecustomize at its start; a slow start on a busy machine must not count as hanging."""
    raw = tmp_path / "raw"
    for number in range(12):
        write(raw / f"{number}.dcm", picture(seed=number))
    for number in range(2):
        (raw / f"bad{number}.dcm").write_bytes(to_bytes(dataset(picture(), PatientComments=f"{word} the decoder")))
    (tmp_path / "sitecustomize.py").write_text(FAILING.format(seconds=seconds))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "components", *arguments(tmp_path, "workers=2", "parts=2")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    quarantine = pq.read_table(tmp_path / "shards" / "quarantine.parquet").to_pylist()
    assert quarantine == [{"path": f"bad{n}.dcm", "reason": "unreadable", "detail": detail} for n in range(2)]
    assert len(rows_of(tmp_path / "shards")) == 12


@pytest.mark.slow
def test_with_one_worker_a_file_that_hangs_its_decoder_is_set_aside_by_the_next_run(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "good.dcm")
    write(tmp_path / "raw" / "bad.dcm", PatientComments="hang the decoder")
    (tmp_path / "sitecustomize.py").write_text(FAILING.format(seconds=12))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "components", *arguments(tmp_path, "workers=1", "parts=1")]
    stuck, done = (subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path) for _ in range(2))
    assert stuck.returncode == 75 and "run the same command again" in stuck.stderr
    assert done.returncode == 0, done.stderr
    (refused,) = pq.read_table(tmp_path / "shards" / "quarantine.parquet").to_pylist()
    assert refused == {"path": "bad.dcm", "reason": "unreadable", "detail": "takes the decoder too long"}


def test_with_one_worker_the_time_between_files_counts_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def process_part(_: object, part: Part, begin: Any, end: Any, wait: Any) -> None:
        for step in (begin, end, begin, wait):
            step()
            begun.append(begin.__self__._begun > 0)

    monkeypatch.setattr(pool, "process_part", process_part)
    context: Any = SimpleNamespace(folder=tmp_path / "work")
    with pool.processing(context, [Part(0, 1)], workers=1) as finish:
        finish()
    assert begun == [True, False, True, False]
