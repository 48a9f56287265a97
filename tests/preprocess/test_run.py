import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from pydicom.uid import JPEGLSLossless

from components.__main__ import main
from components.common.formats import shards
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.storage import digest_file
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from components.preprocess.index import connect
from components.preprocess.ledger import Ledger
from components.preprocess.manifest import input_digest
from components.preprocess.rows import Note
from tests.common.dicom.phantoms import IDENTIFIERS, dataset, picture, to_bytes, write

KEY = "a key that is long enough"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def section_of(override: str) -> str:
    return "runtime" if override.partition("=")[0] in Runtime.model_fields else "preprocess"


def arguments(tmp_path: Path, *overrides: str, out: str = "shards") -> list[str]:
    params = tmp_path / "params.yaml"
    params.write_text("preprocess: {size: 32, parts: 4}\nruntime: {workers: 1, max_quarantined: 0.9}\n")
    options = [item for override in overrides for item in ("--set", f"{section_of(override)}.{override}")]
    return ["preprocess", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / out), "--params", str(params), *options]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def digests_of(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in folder.iterdir() if path.name != "run.json"}


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def write_cohort(raw: Path, patients: int = 12) -> None:
    """Writes two images per patient, and three files that are not radiographs."""
    for patient in range(patients):
        for image in range(2):
            write(raw / f"p{patient}" / f"{image}.dcm", picture(seed=patient), PatientID=f"MRN{patient}")
    (raw / "p0" / ".hidden").write_text("notes")
    (raw / "p0" / "empty").touch()
    write(raw / "p1" / "hand.dcm", BodyPartExamined="HAND")


def test_one_row_per_image_with_labels_and_boxes(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(raw / "a" / "one.dcm", picture(64, 48), syntax=JPEGLSLossless)
    write(raw / "b" / "two", picture(40, 80, seed=1), PatientID=None)
    raw.joinpath("labels.csv").write_text(f"image,Mass,Nodule\n{made.SOPInstanceUID},1,\nb/two,0,-1\n")
    raw.joinpath("boxes.csv").write_text("image,label,x,y,width,height\nb/two,Mass,10,20,40,30\n")
    assert main(arguments(tmp_path, "bits=16", "unknown_labels=ones")) == 0
    one, two = sorted(rows_of(tmp_path / "shards"), key=lambda row: row["source_width"])
    assert (one["height"], one["width"], one["bits"], one["source_height"], one["source_width"]) == (32, 24, 16, 64, 48)
    assert (two["height"], two["width"]) == (16, 32)
    assert one["labels"][0] == 1 and np.isnan(one["labels"][1]) and two["labels"] == [0, 1]
    assert one["boxes"] == [] and two["boxes"] == [{"label": "Mass", "x": 4.0, "y": 8.0, "width": 16.0, "height": 8.0}]
    assert one["transfer_syntax"] == JPEGLSLossless and one["age"] == 57 and one["sex"] == "F"
    pixels = picture(64, 48)
    upper = np.percentile(pixels, 99)
    expected = (np.clip(pixels, 0, upper) / upper).reshape(32, 2, 24, 2).mean((1, 3)) * 65535
    assert np.abs(shards.decode(one) - expected).max() < 1
    assert manifest_of(tmp_path / "shards")["patient_id_from"] == {"PatientID": 1, "StudyInstanceUID": 1}


def test_every_file_is_a_row_or_quarantined_and_counted(tmp_path: Path, raw: Path) -> None:
    write_cohort(raw)
    assert main(arguments(tmp_path)) == 0
    folder = tmp_path / "shards"
    rows, manifest = rows_of(folder), manifest_of(folder)
    counts = manifest["counts"]
    assert (counts["files"], counts["rows"], counts["quarantined"], counts["duplicates"]) == (27, 24, 3, 0)
    assert counts["same_pixels"] == {"images": 24, "across_splits": 0}, "the two images of a patient are the same"
    assert counts["images"] == {split: sum(row["split"] == split for row in rows) for split in shards.SPLITS}
    assert counts["reasons"] == {"not_dicom": 2, "wrong_body_part": 1}
    quarantine = {entry["path"]: entry["reason"] for entry in pq.read_table(folder / "quarantine.parquet").to_pylist()}
    assert quarantine == {"p0/.hidden": "not_dicom", "p0/empty": "not_dicom", "p1/hand.dcm": "wrong_body_part"}
    by_patient = Counter((row["patient_id"], row["split"]) for row in rows)
    assert len(by_patient) == 12 and set(by_patient.values()) == {2}
    train = np.concatenate([shards.decode(row).ravel() for row in rows if row["split"] == "train"]) / 255
    assert manifest["train_pixels"]["count"] == train.size
    assert manifest["train_pixels"]["mean"] == pytest.approx(train.mean(), abs=1e-12)
    assert manifest["train_pixels"]["std"] == pytest.approx(train.std(), abs=1e-12)
    for part in manifest["parts"]:
        assert part["sha256"] == hashlib.sha256((folder / part["name"]).read_bytes()).hexdigest()
    opened = open_shards(str(folder))
    assert opened.mean_std == pytest.approx((train.mean(), train.std())) and opened.table(["image_id"]).num_rows == 24


def test_labels_are_counted_by_split(tmp_path: Path, raw: Path) -> None:
    write_cohort(raw)
    raw.joinpath("labels.csv").write_text("image,Mass\n" + "".join(f"p{n}/0.dcm,{n % 2}\n" for n in range(12)))
    assert main(arguments(tmp_path)) == 0
    rows, counted = rows_of(tmp_path / "shards"), manifest_of(tmp_path / "shards")["counts"]["labels"]
    for split in shards.SPLITS:
        values = [row["labels"][0] for row in rows if row["split"] == split]
        expected = {"positive": values.count(1), "negative": values.count(0), "unknown": sum(map(np.isnan, values))}
        assert counted[split]["Mass"] == expected
    assert sum(counts["Mass"]["unknown"] for counts in counted.values()) == 12


def test_no_identifier_of_the_input_occurs_in_the_output(tmp_path: Path, raw: Path, mlflow_database: Path) -> None:
    made = [write(raw / f"{n}.dcm", picture(seed=n), SeriesDescription="Quartermaine again") for n in range(6)]
    write(raw / "refused.dcm", picture(), BurnedInAnnotation="YES")
    write(raw / "view.dcm", picture(), ViewPosition="MRN55501234")
    assert main(arguments(tmp_path)) == 0
    secrets = {*IDENTIFIERS.values(), "Quartermaine", KEY, "2.25."}
    secrets |= {str(file[name].value) for file in made for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
    folder = tmp_path / "shards"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.glob("*.parquet"):  # columns are compressed
        table = pq.read_table(path)
        columns = [name for name in table.column_names if name not in ("pixels", "path")]
        found[f"{path.name} decompressed"] = str(table.select(columns).to_pylist()).encode()
    found["mlflow"] = mlflow_database.read_bytes()
    leaks = [(name, secret) for name, content in found.items() for secret in secrets if secret.encode() in content]
    assert leaks == []


def test_only_the_manifest_goes_to_mlflow(tmp_path: Path, raw: Path) -> None:
    write_cohort(raw, 2)
    assert main(arguments(tmp_path)) == 0
    run_id = json.loads((tmp_path / "shards" / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["manifest.json"]
    metrics = json.loads((tmp_path / "shards" / "metrics.json").read_text())
    logged = client.get_run(run_id).data.metrics.items()
    assert {name: value for name, value in logged if not name.startswith("system/")} == metrics and metrics["rows"] == 4


def test_the_first_path_of_duplicates_is_kept(tmp_path: Path, raw: Path) -> None:
    original = to_bytes(dataset(picture(), SOPInstanceUID="2.25.42", PatientID="first"))
    for number in range(10):
        copy = number > 3
        write(raw / f"{number}.dcm", picture(seed=0 if copy else number), SOPInstanceUID="2.25.42" if copy else f"2.25.{number}")
    (raw / "3.dcm").write_bytes(original)
    (raw / "refused.dcm").write_bytes(to_bytes(dataset(picture(), SOPInstanceUID="2.25.42", Modality="CT")))
    for parts in (1, 7):
        assert main(arguments(tmp_path, f"parts={parts}", out=f"shards{parts}")) == 0
        rows, counts = rows_of(tmp_path / f"shards{parts}"), manifest_of(tmp_path / f"shards{parts}")["counts"]
        assert (counts["files"], counts["rows"], counts["quarantined"], counts["duplicates"]) == (11, 4, 1, 6)
        assert len({row["image_id"] for row in rows}) == len(rows) == 4
        patients = Counter(row["patient_id"] for row in rows)
        assert min(patients.values()) == 1, "the kept duplicate is the one of patient `first`"


def test_images_with_the_same_pixels_and_other_ids_are_counted(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        write(raw / f"{number}.dcm", picture(seed=0 if number < 8 else number), SOPInstanceUID=f"2.25.{number}", PatientID=str(number))
    for number in (8, 9, 8):
        write(raw / f"copy of {number}.dcm", picture(seed=number), SOPInstanceUID=f"2.25.10{number}", PatientID=str(number))
    assert main(arguments(tmp_path)) == 0
    pictures: dict[bytes, list[str]] = {}
    for row in rows_of(tmp_path / "shards"):
        pictures.setdefault(shards.decode(row).tobytes(), []).append(row["split"])
    shared = [splits for splits in pictures.values() if len(splits) > 1]
    across = sum(len(splits) for splits in shared if len(set(splits)) > 1)
    assert sorted(map(len, shared)) == [2, 2, 8] and across >= 8
    assert manifest_of(tmp_path / "shards")["counts"]["same_pixels"] == {"images": 12, "across_splits": across}
    assert f"{across} images have the pixels of an image in another split" in caplog.text
    assert f"{across} images have the pixels" in (tmp_path / "shards" / "report.html").read_text()


def test_the_shards_do_not_depend_on_processes_partial_work_or_file_times(tmp_path: Path, raw: Path) -> None:
    write_cohort(raw)
    (raw / "z.dcm").write_bytes((raw / "p3" / "0.dcm").read_bytes())
    assert main(arguments(tmp_path, "workers=2", out="two")) == 0
    os.utime(raw / "z.dcm", (1, 1))
    assert main(arguments(tmp_path, "workers=1", out="one")) == 0
    assert digests_of(tmp_path / "one") == digests_of(tmp_path / "two")
    assert manifest_of(tmp_path / "one")["counts"]["duplicates"] == 1
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def slow_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are slow to decode, and the shards of an uninterrupted run on them."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "raw").mkdir()
    content = to_bytes(dataset(picture(1000, 800), syntax=JPEGLSLossless, SOPInstanceUID="2.25.777", PatientID="MRN777"))
    for number in range(100, 180):
        (folder / "raw" / f"{number}.dcm").write_bytes(content.replace(b"777", str(min(number, 170)).encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, KEY)
        assert main(arguments(folder, "parts=40", out="straight")) == 0
    return folder


def wait_for_parts(folder: Path, process: "subprocess.Popen[str]", count: int) -> None:
    """Waits until at least `count` parts are done; fails if the process ends before."""
    while sum(1 for _ in folder.glob("shards.partial/*/parts/part-*.jsonl")) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 2), (signal.SIGTERM, 2), (signal.SIGINT, 1)], ids=["kill", "term", "int"])
def test_a_stopped_run_continues_to_the_same_bytes(
    tmp_path: Path, slow_cohort: Path, monkeypatch: pytest.MonkeyPatch, number: int, workers: int
) -> None:
    (tmp_path / "raw").symlink_to(slow_cohort / "raw")
    command = arguments(tmp_path, "parts=40", f"workers={workers}")
    process = subprocess.Popen([sys.executable, "-m", "components", *command], stderr=subprocess.PIPE, text=True)
    wait_for_parts(tmp_path, process, 4)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 75), stderr
    assert not (tmp_path / "shards").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards.partial/*/parts/part-*.jsonl")}
    assert 4 <= len(done) < 40
    touched: dict[Path, int] = {}
    monkeypatch.setattr("components.preprocess.run.read_ledger", _spy(done, touched))
    assert main(arguments(tmp_path, "parts=40")) == 0
    assert touched == done, "a finished part was done again"
    assert digests_of(tmp_path / "shards") == digests_of(slow_cohort / "straight")
    counts = manifest_of(tmp_path / "shards")["counts"]
    assert (counts["files"], counts["rows"], counts["duplicates"]) == (80, 71, 9)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tmp_path: Path, slow_cohort: Path, kills: int) -> None:
    """A run that finishes before the next kill starts again from scratch."""
    (tmp_path / "raw").symlink_to(slow_cohort / "raw")
    command = [sys.executable, "-m", "components", *arguments(tmp_path, "parts=40", "workers=2")]
    draws, hits = random.Random(kills), 0
    while hits < kills:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(draws.uniform(1, 7)) == 0
            assert digests_of(tmp_path / "shards") == digests_of(slow_cohort / "straight")
            shutil.rmtree(tmp_path / "shards")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
    assert main(arguments(tmp_path, "parts=40")) == 0
    assert digests_of(tmp_path / "shards") == digests_of(slow_cohort / "straight")
    assert not list(tmp_path.glob("*.partial"))


def _spy(done: dict[Path, int], touched: dict[Path, int]) -> Any:
    """Wraps `read_ledger` to record when the parts of the first run were written."""
    from components.preprocess.ledger import read_ledger

    def read(*arguments: Any) -> Any:
        touched.update({path: path.stat().st_mtime_ns for path in done if path.exists() and not touched.get(path)})
        return read_ledger(*arguments)

    return read


def test_input_digest_is_of_sorted_paths_and_contents() -> None:
    ledger = Ledger(connect(None))
    ledger.add([Note("b", "11", "x"), Note("a", "00", None, "unreadable", "")])
    assert input_digest(ledger) == hashlib.sha256(b"a\x0000\nb\x0011\n").hexdigest()


def error_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    capsys.readouterr()
    assert main(arguments(tmp_path, *overrides)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("preprocess: ")]
    assert len(lines) == 1 and "Traceback" not in lines[0]
    return lines[0]


def test_mistakes_get_one_sentence(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{raw}: no such file or folder" in error_of(tmp_path, capsys)
    raw.mkdir()
    assert f"{raw}: holds no files" in error_of(tmp_path, capsys)
    write_cohort(raw, 2)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert ENVIRONMENT_VARIABLE in error_of(tmp_path, capsys)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "short")
    assert ENVIRONMENT_VARIABLE in error_of(tmp_path, capsys)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)
    inside = arguments(tmp_path, out="raw/shards")
    assert main(inside) == 2 and "lies inside the raw folder" in capsys.readouterr().err
    raw.joinpath("labels.csv").write_text("image,Mass\np0/0.dcm,1\nnobody.dcm,1\n1.2.3,0\n")
    assert f"{raw}/labels.csv: names 2 images that are not among the files, first nobody.dcm" in error_of(tmp_path, capsys)
    raw.joinpath("labels.csv").write_text("image,Mass\np0/0.dcm,maybe\n")
    assert "labels.csv line 2: Mass is 'maybe'" in error_of(tmp_path, capsys)
    raw.joinpath("labels.csv").unlink()
    raw.joinpath("boxes.csv").write_text("image,label,x,y,width,height\np0/0.dcm,Mass,500,500,10,10\n")
    assert "boxes.csv line 2: the box lies outside" in error_of(tmp_path, capsys)
    assert "boxes.csv line 2: the box lies outside" in error_of(tmp_path, capsys, "workers=2")


def test_labels_may_name_quarantined_files(tmp_path: Path, raw: Path) -> None:
    write(raw / "good.dcm")
    refused = write(raw / "ct.dcm", Modality="CT")
    raw.joinpath("labels.csv").write_text(f"image,Mass\n{refused.SOPInstanceUID},1\n")
    raw.joinpath("boxes.csv").write_text("image,label,x,y,width,height\nct.dcm,Mass,1,1,5,5\n")
    assert main(arguments(tmp_path)) == 0


def test_too_many_quarantined_files_fail_until_the_limit_is_raised(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(raw, 4)
    message = error_of(tmp_path, capsys, "max_quarantined=0.2")
    assert "3 of 11 files are quarantined (not_dicom 2, wrong_body_part 1)" in message
    report = Path(message.split("see ")[1].split(",")[0])
    assert pq.read_table(report).num_rows == 3 and not (tmp_path / "shards").exists()
    assert main(arguments(tmp_path, "max_quarantined=0.3")) == 0
    assert json.loads((tmp_path / "shards" / "run.json").read_text())["resumed"]


def test_file_names_that_are_not_utf8(tmp_path: Path, raw: Path) -> None:
    write(raw / os.fsdecode(b"caf\xe9.dcm"))
    (raw / os.fsdecode(b"th\xe9")).touch()
    assert main(arguments(tmp_path)) == 0
    assert pq.read_table(tmp_path / "shards" / "quarantine.parquet").to_pylist()[0]["path"] == "th\\udce9"


def test_no_usable_file_at_all(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(raw / "ct.dcm", Modality="CT")
    assert "none of the 1 files is a usable radiograph (wrong_modality 1)" in error_of(tmp_path, capsys, "max_quarantined=1")


def test_a_simulated_cohort_needs_no_key(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    write(raw / "one.dcm", SyntheticData="YES")
    assert main(arguments(tmp_path)) == 0
    assert manifest_of(tmp_path / "shards")["pseudonym_key_id"] == "simulated"


def test_another_key_gives_other_pseudonyms_and_the_same_split(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cohort(raw)
    assert main(arguments(tmp_path)) == 0
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY[::-1])
    assert main(arguments(tmp_path, out="rotated")) == 0
    before, after = rows_of(tmp_path / "shards"), rows_of(tmp_path / "rotated")
    assert [row["split"] for row in before] == [row["split"] for row in after]
    assert not {row["patient_id"] for row in before} & {row["patient_id"] for row in after}
    first, second = (manifest_of(tmp_path / name)["pseudonym_key_id"] for name in ("shards", "rotated"))
    assert first != second and KEY not in first
