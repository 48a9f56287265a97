import json
from pathlib import Path

import pytest

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import storage
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from components.preprocess.layouts import nih
from tests import seaweed
from tests.preprocess.layouts.miniature import KEY, arguments, positives, run, table, write_picture, write_text

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ENTRIES = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,No Finding,1,1,58,M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,Pleural_Thickening,0,2,094Y,F,PA,2500,2048,0.168,0.168",
    "00000003_000.png,No Finding,0,3,414,F,PA,2582,2991,0.143,0.143",
)
BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,",
    "00000001_000.png,Cardiomegaly,16,32.5,32,16,,,",
    "00000003_000.png,Infiltrate,1,2,3,4,,,",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The unpacked archives and their readme; one image of the table is missing."""
    folder = tmp_path / "raw"
    write_text(folder, "Data_Entry_2017_v2020.csv", HEADER, *ENTRIES, "00000009_000.png,Mass,0,9,50,M,PA,2500,2048,0.168,0.168")
    write_text(folder, "BBox_List_2017.csv", *BOXES)
    write_text(folder, "README_CHESTXRAY.pdf", "%PDF")
    write_text(folder, "train_val_list.txt", "00000001_000.png", "00000001_001.png", "00000003_000.png")
    write_text(folder, "test_list.txt", "00000002_000.png", "00000009_000.png")
    write_picture(folder / "images_001" / "images" / "00000001_000.png")
    write_picture(folder / "images_001" / "images" / "00000001_001.png", mode="RGBA")
    write_picture(folder / "images_002" / "images" / "00000002_000.png")
    write_picture(folder / "images_002" / "images" / "00000003_000.png")
    return folder


def test_as_downloaded(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "nih", "split=official", "val_fraction=0")
    first, second = rows["images_001/images/00000001_000.png"], rows["images_001/images/00000001_001.png"]
    third, fourth = rows["images_002/images/00000002_000.png"], rows["images_002/images/00000003_000.png"]
    assert len(rows) == manifest["counts"]["files"] == 4 and len(manifest["findings"]) == 15
    assert positives(first, manifest) == {"Cardiomegaly", "Emphysema"} and positives(second, manifest) == {"No Finding"}
    assert sorted(first["labels"]) == [0] * 13 + [1] * 2
    assert first["patient_id"] == second["patient_id"] and len({row["patient_id"] for row in rows.values()}) == 3
    assert (first["view"], second["view"], first["sex"], third["sex"]) == ("PA", "AP", "M", "F")
    assert (first["age"], third["age"], fourth["age"]) == (57, 90, None)
    assert first["boxes"] == [{"label": "Cardiomegaly", "x": 8.0, "y": 16.25, "width": 16.0, "height": 8.0}]
    assert [box["label"] for box in fourth["boxes"]] == ["Infiltration"]
    assert {path: row["split"] for path, row in rows.items() if row["split"] == "test"} == {"images_002/images/00000002_000.png": "test"}
    assert first["transfer_syntax"] == "image/png" and manifest["patient_id_from"] == {"Data_Entry_2017_v2020.csv": 4}


def test_the_first_release_has_other_names(tmp_path: Path) -> None:
    header = HEADER.replace("Gender", "Sex") + ","
    write_text(tmp_path, "Data_Entry_2017.csv", header, *(entry + "," for entry in ENTRIES))
    records = table(tmp_path, "nih").records
    assert len(records) == 4 and records["00000001_000.png"].sex == "M" and not table(tmp_path, "nih").boxes


def test_validation_is_taken_out_of_train_by_patient(tmp_path: Path, raw: Path) -> None:
    read = table(raw, "nih", split="official")
    named = {path: read.official_split(path, read.record(path, "")) for path in ("images/00000001_000.png", "images/00000002_000.png")}
    assert list(named.values()) == ["train+val", "test"]
    write_text(raw, "test_list.txt")
    read = table(raw, "nih", split="official")
    with pytest.raises(UserError, match=r"images/00000002_000.png: the data set's own split does not name this image"):
        read.official_split("images/00000002_000.png", read.record("images/00000002_000.png", ""))


def test_a_split_that_separates_images_of_a_patient_is_refused(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)
    write_text(raw, "train_val_list.txt", "00000001_000.png", "00000003_000.png")
    write_text(raw, "test_list.txt", "00000001_001.png", "00000002_000.png")
    assert main(arguments(tmp_path, str(raw), "nih", "split=official")) == 2
    assert "own split has 1 patients in more than one of its parts" in capsys.readouterr().err


@pytest.mark.services
def test_from_s3(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, manifest = run(tmp_path, monkeypatch, "nih", "split=official")
    with seaweed.serve(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        uri = f"s3://{seaweed.BUCKET}/sets/nih"
        storage.copy_folder(raw, uri, last="test_list.txt")
        assert main(arguments(tmp_path, uri, "nih", "split=official")) == 0
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text()) == manifest and local


def test_only_image_folders_are_looked_at(raw: Path) -> None:
    read = table(raw, "nih")
    assert read.is_image("images/00000001_000.png") and read.is_image("images_001/images/00000001_000.png")
    assert not any(map(read.is_image, ("test_list.txt", "images", "docs/x.png", "images/.DS_Store", "images/__MACOSX/._1.png")))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("Data_Entry_2017_v2020.csv", [HEADER, ENTRIES[0], ENTRIES[0]], "line 3: names the same image as line 2"),
        ("Data_Entry_2017_v2020.csv", [HEADER, ENTRIES[0].replace("Emphysema", "Emphys")], "line 2: 'Emphys' is not a label"),
        ("Data_Entry_2017_v2020.csv", ["Image Index,Labels"], "line 1: lacks the column Finding Labels"),
        ("Data_Entry_2017_v2020.csv", [HEADER, ENTRIES[0] + ",1,2"], "line 2: has 13 cells, the header 11"),
        ("BBox_List_2017.csv", [BOXES[0], "00000001_000.png,Mass,1,2,x,4,,,"], "line 2: x, y, width and height"),
    ],
)
def test_mistakes_name_file_and_line(raw: Path, name: str, lines: list[str], message: str) -> None:
    write_text(raw, name, *lines)
    with pytest.raises(UserError, match=f"{name} {message}"):
        table(raw, "nih")


@pytest.mark.parametrize("name", ["train_val_list.txt", "test_list.txt"])
def test_missing_files_are_named(raw: Path, name: str) -> None:
    (raw / name).unlink()
    assert table(raw, "nih").findings == nih.FINDINGS
    with pytest.raises(UserError, match=f"{name}: no such file"):
        table(raw, "nih", split="official")
    (raw / "Data_Entry_2017_v2020.csv").unlink()
    with pytest.raises(UserError, match=r"Data_Entry_2017_v2020.csv: no such file \(or Data_Entry_2017.csv\)"):
        table(raw, "nih")
