"""Names in tables against the paths of images that were converted, renamed or copied by other systems."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from components.__main__ import main
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE
from components.preprocess.index import Index, StoredMap, plain_name
from tests.common.dicom.phantoms import picture, write
from tests.preprocess.layouts.miniature import write_dicom, write_picture
from tests.preprocess.test_partitions import merge, partition
from tests.preprocess.test_raw_folder import SMALLEST
from tests.preprocess.test_run import KEY, arguments, digests_of, error_of, manifest_of, rows_of


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("1.png", "1.jpg", True),
        ("1.png", "1.PNG", True),
        ("a/IMG1.dcm", "a/img1", True),
        ("a\\b.png", "a/b.jpeg", True),
        ("./a.png", "a.png", True),
        ("a.dcm", "a.dcm.png", True),
        (unicodedata.normalize("NFC", "hôpital.png"), unicodedata.normalize("NFD", "hôpital.png"), True),
        ("1.2.3", "1.2.4", False),
        ("a/1.png", "b/1.png", False),
        ("1.5", "1", False),
        (".png", ".jpg", False),
        ("a/.png", "a/.jpg", False),
    ],
)
def test_plain_names(name: str, other: str, same: bool) -> None:
    assert (plain_name(name) == plain_name(other)) == same


def test_the_same_name_wins_and_several_others_match_nothing() -> None:
    known = StoredMap(Index(), "records", str)
    known.update({"a.png": "1", "A.jpg": "2", "b.png": "3"})
    matches = {name: known.match(name) for name in ("a.png", "A.jpg", "a.dcm", "B.PNG", "c.png")}
    assert matches == {"a.png": "a.png", "A.jpg": "A.jpg", "a.dcm": None, "B.PNG": "b.png", "c.png": None}


@pytest.mark.parametrize(
    ("layout", "renamed"),
    [
        ("nih", "images/1.jpg"),
        ("nih", "images/1.PNG"),
        ("nih", "images/1.dcm"),
        ("rsna", "stage_2_train_images/1.png"),
        ("vindr", "train/1.JPEG"),
        ("chexpert", "train/Patient1/study1/1.png"),
        ("table", "A/1.PNG"),
    ],
)
def test_converted_images_keep_their_labels(tmp_path: Path, raw: Path, layout: str, renamed: str) -> None:
    files = SMALLEST[layout] | ({"labels.csv": "image,patient,view,Mass\na/1.dcm,p1,PA,1\n"} if layout == "table" else {})
    for path, text in files.items():
        if text:
            (raw / path).write_text(text)
        elif renamed.endswith(".dcm"):
            write_dicom(raw / renamed, SOPInstanceUID=None)
        else:
            write_picture(raw / renamed)
    assert main(arguments(tmp_path, f"layout={layout}")) == 0
    (row,) = rows_of(tmp_path / "shards")
    assert not np.isnan(row["labels"]).any() and 1 in row["labels"]
    manifest = manifest_of(tmp_path / "shards")
    assert manifest["counts"]["unnamed"] == 0 and manifest["patient_id_invented"] == (layout == "vindr")


def test_boxes_follow_converted_images(tmp_path: Path, raw: Path) -> None:
    (raw / "Data_Entry_2017.csv").write_text(SMALLEST["nih"]["Data_Entry_2017.csv"] or "")
    (raw / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n1.png,Mass,16,32,32,16,,,\n")
    write_picture(raw / "images" / "1.jpg")
    assert main(arguments(tmp_path, "layout=nih")) == 0
    assert [box["label"] for row in rows_of(tmp_path / "shards") for box in row["boxes"]] == ["Mass"]


def write_nih(raw: Path, names: list[str], files: list[str]) -> None:
    rows = "".join(f"{name},Mass,{number},5,PA\n" for number, name in enumerate(names))
    (raw / "Data_Entry_2017.csv").write_text(f"Image Index,Finding Labels,Patient ID,Patient Age,View Position\n{rows}")
    for name in files:
        write_picture(raw / "images" / name)


def test_tables_that_name_no_image_stop_every_partition(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nih(raw, ["a.png", "b.png"], [f"{number}.png" for number in range(5)])
    message = "of the 2 images in Data_Entry_2017.csv, 0 are among the 5 files in images*/; put tables and images of the same data set"
    assert f"{raw}: {message}" in error_of(tmp_path, capsys, "layout=nih")
    for number in range(2):
        assert partition(tmp_path, number, 2, "layout=nih") == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "files", "code"),
    [
        ([f"{n}.png" for n in range(300)], ["7.png"], 0),  # a part of the data set
        (["0.png"], [f"{n}.png" for n in range(12)], 0),  # labels for a few
        ([f"{n}.png" for n in range(300)], ["7.png", *(f"x{n}.png" for n in range(11))], 0),
        ([f"{n}.png" for n in range(300)], [f"x{n}.png" for n in range(12)], 2),
    ],
    ids=["part", "few labels", "many others", "none"],
)
def test_a_part_of_a_data_set_is_enough(tmp_path: Path, raw: Path, names: list[str], files: list[str], code: int) -> None:
    write_nih(raw, names, files)
    assert main(arguments(tmp_path, "layout=nih")) == code


def test_test_images_without_labels_may_be_alone(tmp_path: Path, raw: Path) -> None:
    for path, text in SMALLEST["rsna"].items():
        if text:
            (raw / path).write_text(text)
    write_dicom(raw / "stage_2_test_images" / "2.dcm")
    assert main(arguments(tmp_path, "layout=rsna")) == 0


def test_what_is_missing_on_either_side_is_counted(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nih(raw, [f"{n}.png" for n in range(6)], ["0.png", "1.png", "2.png", "x.png"])
    assert main(arguments(tmp_path, "layout=nih")) == 0
    logged = [record.getMessage() for record in caplog.records]
    assert "preprocess: the tables of the data set name 6 images, of which 3 exist" in logged
    assert "preprocess: 1 image of 4 in no table: all labels are unknown." in logged
    assert any("preprocess: 1 image without a patient id" in line for line in logged)


def test_partitions_match_as_a_single_run_does(tmp_path: Path, raw: Path) -> None:
    for number in range(8):
        write(raw / "A" / f"{number}.dcm", picture(seed=number), SOPInstanceUID=None)
    names = "".join(f"a/{number}.png,{number % 2}\n" for number in range(8))
    (raw / "labels.csv").write_text(f"image,Mass\n{names}")
    assert main(arguments(tmp_path)) == 0
    for number in range(3):
        assert partition(tmp_path, number, 3) == 0
    assert merge(tmp_path, 2, 1, 0) == 0
    assert digests_of(tmp_path / "merged") == digests_of(tmp_path / "shards")
    assert manifest_of(tmp_path / "merged")["counts"]["unnamed"] == 0


def test_a_table_behind_a_broken_link_is_named(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(raw / "1.dcm")
    (raw / "labels.csv").symlink_to(tmp_path / "gone.csv")
    assert f"{raw}/labels.csv: is neither a file nor a link to one" in error_of(tmp_path, capsys)


def test_one_patient_is_too_few_to_split(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        write(raw / f"{number}.dcm", picture(seed=number), PatientID="one")
    assert main(arguments(tmp_path)) == 0
    of_split = manifest_of(tmp_path / "shards")["counts"]["images"]
    lines = [record.getMessage() for record in caplog.records if "split has no images" in record.getMessage()]
    assert len(lines) == 2 == list(of_split.values()).count(0)
    assert all("too few patients (1); add more, or change preprocess.val_fraction" in line for line in lines)
