from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from tests.preprocess.layouts.miniature import positives, run, table, write_dicom, write_text

CLASSES = "stage_2_detailed_class_info.csv"
BOXES = "stage_2_train_labels.csv"
ILL, OTHER, WELL, UNKNOWN = (f"{number:08x}-03cc-4e6b-8b2d-ff8a0d1b1e4b" for number in range(4))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """One image per class, and one test image."""
    folder = tmp_path / "raw"
    write_text(
        folder,
        CLASSES,
        "patientId,class",
        f"{ILL},Lung Opacity",
        f"{ILL},Lung Opacity",
        f"{OTHER},No Lung Opacity / Not Normal",
        f"{WELL},Normal",
    )
    write_text(
        folder,
        BOXES,
        "patientId,x,y,width,height,Target",
        f"{OTHER},,,,,0",
        f"{ILL},8.0,16.0,32.0,24.0,1",
        f"{ILL},40.0,16.0,16.0,20.0,1",
        f"{WELL},,,,,0",
    )
    for name in (ILL, OTHER, WELL):
        write_dicom(folder / "stage_2_train_images" / f"{name}.dcm", PatientID=name, SOPInstanceUID=None)
    write_dicom(folder / "stage_2_test_images" / f"{UNKNOWN}.dcm", PatientID=UNKNOWN, SOPInstanceUID=None)
    write_text(folder, "stage_2_sample_submission.csv", "patientId,PredictionString")
    return folder


def test_as_downloaded(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "rsna", "split=official", "val_fraction=0")
    ill, other, well = (rows[f"stage_2_train_images/{name}.dcm"] for name in (ILL, OTHER, WELL))
    unknown = rows[f"stage_2_test_images/{UNKNOWN}.dcm"]
    assert len(rows) == manifest["counts"]["files"] == 4
    assert [positives(row, manifest) for row in (ill, other, well)] == [{"Lung Opacity"}, {"No Lung Opacity / Not Normal"}, {"Normal"}]
    assert ill["labels"] == [1, 0, 0] and np.isnan(unknown["labels"]).all()
    assert [(box["label"], box["x"], box["height"]) for box in ill["boxes"]] == [("Lung Opacity", 4, 12), ("Lung Opacity", 20, 10)]
    assert not other["boxes"] and not well["boxes"]
    assert [row["split"] for row in (ill, other, well, unknown)] == ["train", "train", "train", "test"]
    assert manifest["patient_id_from"] == {"PatientID": 4}


@pytest.mark.parametrize("name", [CLASSES, BOXES])
def test_missing_tables_are_named(raw: Path, name: str) -> None:
    (raw / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file; preprocess.layout `rsna` expects it"):
        table(raw, "rsna")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (CLASSES, ["patientId,class", f"{ILL},Normal", f"{ILL},Lung Opacity"], "line 3: another class than in line 2"),
        (CLASSES, ["patientId,class", f"{ILL},Ill"], "line 2: 'Ill' is not a label"),
        (BOXES, ["patientId,x,y,width,height,Target", f"{ILL},1,2,,4,1"], "line 2: x, y, width and height"),
        (BOXES, ["patientId,x,y,width,Target"], "line 1: lacks the column height"),
    ],
)
def test_mistakes_name_file_and_line(raw: Path, name: str, lines: list[str], message: str) -> None:
    write_text(raw, name, *lines)
    with pytest.raises(UserError, match=f"{name} {message}"):
        table(raw, "rsna")
