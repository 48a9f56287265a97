from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.preprocess.labels import Box
from components.preprocess.layouts.vindr import merge_overlapping, overlap
from tests.preprocess.layouts.miniature import positives, run, table, write_dicom, write_text

A, B, C = (f"{number:x}" * 32 for number in (10, 11, 12))
KAGGLE = (
    "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
    f"{A},Cardiomegaly,3,R10,10,20,50,40",
    f"{A},Cardiomegaly,3,R8,12,20,52,40",
    f"{A},Nodule/Mass,8,R8,0,0,8,8",
    f"{A},No finding,14,R9,,,,",
    f"{B},No finding,14,R1,,,,",
    f"{B},No finding,14,R2,,,,",
    f"{B},Pneumothorax,12,R3,1,1,30,30",
)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """The files of the Kaggle competition."""
    folder = tmp_path / "raw"
    write_text(folder, "train.csv", *KAGGLE)
    write_text(folder, "sample_submission.csv", "image_id,PredictionString")
    for path in (f"train/{A}.dicom", f"train/{B}.dicom", f"test/{C}.dicom"):
        write_dicom(folder / path, SOPInstanceUID=None, ViewPosition=None)
    return folder


@pytest.fixture
def physionet(tmp_path: Path) -> Path:
    """The files of PhysioNet: three readers for training; a consensus and a different column name for the test split."""
    folder = tmp_path / "raw" / "annotations"
    findings = "Aortic enlargement,Nodule/Mass,Other disease{},No finding"
    write_text(
        folder,
        "image_labels_train.csv",
        f"image_id,rad_id,{findings.format('s')}",
        f"{A},R1,1,0,0,0",
        f"{A},R2,1,1,0,",
        f"{A},R3,0,0,0,1",
    )
    write_text(folder, "image_labels_test.csv", f"image_id,{findings.format('')}", f"{C},0,0,1,0")
    write_text(
        folder,
        "annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
        f"{A},R1,Aortic enlargement,10,10,30,30",
        f"{A},R2,Aortic enlargement,40,40,60,60",
        f"{A},R2,Nodule/Mass,1,1,5,5",
        f"{A},R3,No finding,,,,",
    )
    write_text(folder, "annotations_test.csv", "image_id,class_name,x_min,y_min,x_max,y_max", f"{C},Other disease,2,2,6,6")
    for path in (f"train/{A}.dicom", f"test/{C}.dicom"):
        write_dicom(tmp_path / "raw" / path, SOPInstanceUID=None, ViewPosition=None)
    return tmp_path / "raw"


def test_kaggle_as_downloaded(tmp_path: Path, kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "vindr", "split=official", "val_fraction=0")
    ill, well, unread = rows[f"train/{A}.dicom"], rows[f"train/{B}.dicom"], rows[f"test/{C}.dicom"]
    assert len(rows) == manifest["counts"]["files"] == 3 and len(manifest["findings"]) == 15
    assert (positives(ill, manifest), positives(well, manifest)) == ({"Cardiomegaly"}, {"No finding"})
    assert np.isnan(unread["labels"]).all() and [row["split"] for row in (ill, well, unread)] == ["train", "train", "test"]
    assert ill["boxes"] == [{"label": "Cardiomegaly", "x": 5.5, "y": 10.0, "width": 20.0, "height": 10.0}] and not well["boxes"]
    assert manifest["patient_id_from"] == {"file": 3}


def test_one_reader_suffices_on_request(kaggle: Path) -> None:
    read = table(kaggle, "vindr", readers="any")
    said = {name for name, value in zip(read.findings, read.records[A].labels, strict=True) if value}
    assert said == {"Cardiomegaly", "Nodule/Mass", "No finding"}
    assert [box.label for box in read.boxes[A]] == ["Cardiomegaly", "Nodule/Mass"] and len(read.boxes[B]) == 1


def test_physionet_as_downloaded(tmp_path: Path, physionet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "vindr", "split=official", "val_fraction=0")
    train, test = rows[f"train/{A}.dicom"], rows[f"test/{C}.dicom"]
    assert manifest["findings"] == ["Aortic enlargement", "Nodule/Mass", "Other diseases", "No finding"]
    assert train["labels"] == [1, 0, 0, 0] and test["labels"] == [0, 0, 1, 0]
    assert [(box["label"], box["x"]) for box in train["boxes"]] == [("Aortic enlargement", 5), ("Aortic enlargement", 20)]
    assert [(box["label"], box["x"]) for box in test["boxes"]] == [("Other diseases", 1)]
    assert (train["split"], test["split"]) == ("train", "test")
    assert set(manifest["labels"]) >= {"annotations/image_labels_train.csv", "annotations/annotations_test.csv"}


def test_two_of_three_readers_are_a_majority_and_one_of_two_is_none(tmp_path: Path) -> None:
    write_text(tmp_path, "train.csv", KAGGLE[0], f"{A},ILD,5,R1,1,1,5,5", f"{A},Atelectasis,1,R2,1,1,5,5")
    assert not any(table(tmp_path, "vindr").records[A].labels) and not table(tmp_path, "vindr").boxes
    write_text(tmp_path, "train.csv", KAGGLE[0], f"{A},ILD,5,R1,1,1,5,5", f"{A},ILD,5,R2,9,9,15,15", f"{A},No finding,14,R3,,,,")
    assert sum(table(tmp_path, "vindr").records[A].labels) == 1


def test_overlap_is_intersection_over_union() -> None:
    square, shifted = Box(2, "A", 0, 0, 10, 10), Box(3, "A", 5, 0, 10, 10)
    assert overlap(square, square) == 1 and overlap(square, shifted) == 50 / 150
    assert overlap(square, Box(4, "A", 20, 20, 5, 5)) == 0 and overlap(square, Box(4, "A", 10, 0, 5, 5)) == 0


def test_boxes_of_one_finding_that_overlap_are_merge_overlapping() -> None:
    one, near, far = Box(2, "A", 0, 0, 10, 10), Box(3, "A", 2, 0, 10, 10), Box(4, "A", 50, 0, 10, 10)
    other = Box(5, "B", 0, 0, 10, 10)
    assert merge_overlapping([one, near, far, other]) == [Box(2, "A", 1, 0, 10, 10), far, other]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([KAGGLE[0], f"{A},Cardio,3,R1,1,1,5,5"], "line 2: 'Cardio' is not a label"),
        ([KAGGLE[0], f"{A},ILD,5,R1,1,1,x,5"], "line 2: x_min, y_min, x_max and y_max must be numbers"),
        ([KAGGLE[0], f"{A},ILD,5,R1,9,1,5,5"], "line 2: x, y, width and height"),
        (["image_id,class_name"], "line 1: lacks the column rad_id"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    write_text(tmp_path, "train.csv", *lines)
    with pytest.raises(UserError, match=f"train.csv {message}"):
        table(tmp_path, "vindr")


def test_missing_tables_are_named(physionet: Path) -> None:
    (physionet / "annotations" / "annotations_train.csv").unlink()
    with pytest.raises(UserError, match=r"annotations_train.csv: no such file"):
        table(physionet, "vindr")
    (physionet / "annotations" / "image_labels_train.csv").unlink()
    with pytest.raises(UserError, match=r"train.csv: no such file \(or annotations/image_labels_train.csv\)"):
        table(physionet, "vindr")
