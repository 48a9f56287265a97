import math
from pathlib import Path

import pytest

from components.common.errors import UserError
from tests.preprocess.layouts.miniature import positives, run, table, write_picture, write_text

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
TRAIN = (
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Male,91,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Male,91,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
)
VALID = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Unknown,73,Frontal,AP,0.0,1.0,0.0,0.0,0,0,0,0,0,0,0,0,0,0"
BATCHES = ("CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)")
FRONTAL, LATERAL = "train/patient00002/study2/view1_frontal.jpg", "train/patient00002/study2/view2_lateral.jpg"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder of the unpacked archive."""
    folder = tmp_path / "raw"
    write_text(folder, "train.csv", HEADER, *TRAIN)
    write_text(folder, "valid.csv", HEADER, VALID)
    for line in (*TRAIN, VALID):
        write_picture(folder / line.split(",")[0].partition("/")[2], 60, 64)
    return folder


def test_as_downloaded(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "chexpert", "split=official", "val_fraction=0", "views=[PA,AP,LATERAL]")
    first, frontal = rows["train/patient00001/study1/view1_frontal.jpg"], rows[FRONTAL]
    lateral, valid = rows[LATERAL], rows["valid/patient64541/study1/view1_frontal.jpg"]
    assert len(rows) == 4 and manifest["findings"] == HEADER.split(",")[5:]
    assert first["labels"] == [1, *[0] * 12, 1], "what a report does not mention counts as absent"
    assert [math.isnan(value) for value in frontal["labels"]] == [cell == "-1.0" for cell in TRAIN[1].split(",")[5:]]
    assert frontal["patient_id"] == lateral["patient_id"] != first["patient_id"]
    assert [row["view"] for row in (first, frontal, lateral)] == ["AP", "PA", "LATERAL"]
    assert [(row["sex"], row["age"]) for row in (first, frontal, valid)] == [("F", 68), ("M", 90), (None, 73)]
    assert [row["split"] for row in (first, frontal, lateral, valid)] == ["train", "train", "train", "test"]
    assert frontal["transfer_syntax"] == "image/jpeg" and (frontal["height"], frontal["width"]) == (30, 32)
    assert manifest["patient_id_from"] == {"train.csv": 3, "valid.csv": 1}


def test_in_batches_as_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, (first, second) = tmp_path / "raw", BATCHES
    write_text(raw / first, "train.csv", HEADER, *(line.replace("-small", "") for line in TRAIN))
    write_text(raw / first, "valid.csv", HEADER, VALID.replace("-small", ""))
    write_picture(raw / first / "valid" / "patient64541" / "study1" / "view1_frontal.jpg")
    write_picture(raw / second / "patient00002" / "study2" / "view1_frontal.jpg")
    rows, manifest = run(tmp_path, monkeypatch, "chexpert", "split=official", "val_fraction=0", "unknown_labels=ones")
    assert len(rows) == manifest["counts"]["files"] == 2
    train, valid = rows[f"{second}/patient00002/study2/view1_frontal.jpg"], rows[f"{first}/valid/patient64541/study1/view1_frontal.jpg"]
    assert (train["split"], valid["split"]) == ("train", "test")
    assert positives(valid, manifest) == {"Enlarged Cardiomediastinum"} and len(positives(train, manifest)) == 7


def test_laterals_are_refused_by_default(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "chexpert")
    assert LATERAL not in rows and manifest["counts"]["reasons"] == {"wrong_view": 1}


@pytest.mark.parametrize(("policy", "expected"), [("ones", 1.0), ("zeros", 0.0)])
def test_the_policy_for_uncertain_labels(raw: Path, policy: str, expected: float) -> None:
    record = table(raw, "chexpert", unknown_labels=policy).record(FRONTAL, "")
    assert record and record.labels[2] == expected and record.labels[3] == 1


def test_missing_and_wrong_tables_are_named(raw: Path) -> None:
    (raw / "valid.csv").unlink()
    assert len(table(raw, "chexpert").records) == 3
    write_text(raw, "train.csv", HEADER, TRAIN[0].replace("1.0", "2.0"))
    with pytest.raises(UserError, match=r"train.csv line 2: No Finding is '2.0'"):
        table(raw, "chexpert")
    write_text(raw, "train.csv", HEADER, TRAIN[0].replace("patient", "p"))
    with pytest.raises(UserError, match=r"train.csv line 2: 'CheXpert-v1.0-small/train/p00001"):
        table(raw, "chexpert")
    write_text(raw, "train.csv", HEADER, TRAIN[0], TRAIN[0])
    with pytest.raises(UserError, match=r"train.csv line 3: names the same image as line 2 of train.csv"):
        table(raw, "chexpert")
    (raw / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train.csv: no such file .*; preprocess.layout `chexpert`"):
        table(raw, "chexpert")
