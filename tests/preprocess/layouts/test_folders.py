from pathlib import Path

import pytest

from components.common.errors import UserError
from components.preprocess.layouts.folders import class_of, patient_of
from tests.preprocess.layouts.miniature import positives, run, table, write_picture, write_text

IMAGES = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-1234-0001-0002.jpeg",
    "train/PNEUMONIA/person100_virus_184.jpeg",
    "train/PNEUMONIA/person100_virus_185.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "test/PNEUMONIA/person100_bacteria_475.jpeg",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Kermany's data set, unpacked on macOS."""
    for path in IMAGES:
        write_picture(tmp_path / "raw" / path, 48, 64, mode="RGB" if "virus" in path else "L")
    write_text(tmp_path / "raw", "train/.DS_Store", "x")
    write_text(tmp_path / "raw", "__MACOSX/train/NORMAL/._IM-0115-0001.jpeg", "x")
    return tmp_path / "raw"


def test_as_downloaded(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "folders", "split=official")
    assert sorted(rows) == sorted(IMAGES) and manifest["counts"]["files"] == 6
    assert manifest["findings"] == ["NORMAL", "PNEUMONIA"]
    assert all(positives(row, manifest) == {path.split("/")[1]} for path, row in rows.items())
    assert all(row["split"] == path.split("/")[0] for path, row in rows.items())
    patients = [rows[path]["patient_id"] for path in IMAGES]
    assert patients[2] == patients[3] and len(set(patients)) == 5, "a number counts within its folder of the official split"
    assert manifest["patient_id_from"] == {"file name": 6}


def test_by_hash_one_number_is_one_patient(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = run(tmp_path, monkeypatch, "folders", "val_fraction=0.4", "test_fraction=0.4")
    person = [rows[path] for path in IMAGES if "person100" in path]
    assert len({row["patient_id"] for row in person}) == 1 and len({row["split"] for row in person}) == 1


def test_validation_is_taken_out_of_train_if_the_set_has_none(raw: Path) -> None:
    assert table(raw, "folders", split="official").folder_splits == {"train": "train", "val": "val", "test": "test"}
    (raw / IMAGES[4]).unlink()
    assert table(raw, "folders", split="official").folder_splits == {"train": "train+val", "test": "test"}


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person123_bacteria_45.jpeg", "person123"),
        ("person1_virus_6_2.jpeg", "person1"),
        ("NORMAL2-IM-1234-0001.jpeg", "IM-1234"),
        ("IM-0115-0001-0002.jpeg", "IM-0115"),
        ("BACTERIA-1008087-0001.jpeg", "1008087"),
        ("PERSON123_BACTERIA_45.JPG", "person123"),
        ("normal2-im-1234-0001.png", "IM-1234"),
        ("covid (12).png", ""),
    ],
)
def test_patients_in_file_names(name: str, patient: str) -> None:
    assert patient_of(f"train/PNEUMONIA/{name}") == patient


@pytest.mark.parametrize(
    ("path", "expected"),
    [("COVID/a.png", "COVID"), ("COVID/images/a.png", "COVID"), ("Train/COVID/a.png", "COVID"), ("train/a.png", None), ("a.png", None)],
)
def test_classes(path: str, expected: str | None) -> None:
    assert class_of(path) == expected


def test_classes_in_another_case_are_the_same(tmp_path: Path) -> None:
    for path in ("train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/Normal/c.png"):
        write_picture(tmp_path / path)
    read = table(tmp_path, "folders")
    records = [read.record(path, "") for path in ("train/NORMAL/a.png", "test/Normal/c.png", "train/PNEUMONIA/b.png")]
    assert read.findings == ("NORMAL", "PNEUMONIA")
    assert [record and record.labels for record in records] == [(1, 0), (1, 0), (0, 1)]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="expects a folder for each class"):
        table(tmp_path, "folders")
    write_picture(tmp_path / "COVID" / "a.png")
    assert table(tmp_path, "folders").findings == ("COVID",)
    with pytest.raises(UserError, match="no folders train, val or test"):
        table(tmp_path, "folders", split="official")
