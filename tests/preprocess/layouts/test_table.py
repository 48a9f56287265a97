from pathlib import Path

import pytest

from components.__main__ import main
from components.common.errors import UserError
from tests.common.dicom.phantoms import write
from tests.preprocess.layouts.miniature import positives, run, table, write_picture, write_text


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """PNG, JPEG and DICOM files, identified by their paths."""
    folder = tmp_path / "raw"
    for path in ("a/one.png", "a/two.jpg", "three.png"):
        write_picture(folder / path)
    write(folder / "a" / "four.dcm", SOPInstanceUID=None, PatientID="P1")
    write_text(folder, "labels.csv", "image,patient,view,age,Mass", "a/one.png,P1,PA,94,1", "a/two.jpg,P2,LL,,0", "a/four.dcm,,,,1")
    write_text(folder, "boxes.csv", "image,label,x,y,width,height", "a/one.png,Mass,2,4,8,16")
    write_text(folder, "notes.txt", "not a picture")
    return folder


def test_pictures_beside_dicom(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, manifest = run(tmp_path, monkeypatch, "table")
    assert set(rows) == {"a/one.png", "three.png", "a/four.dcm"}
    assert manifest["counts"]["reasons"] == {"not_dicom": 1, "wrong_view": 1} and manifest["counts"]["files"] == 5
    assert positives(rows["a/one.png"], manifest) == {"Mass"} and rows["a/one.png"]["age"] == 90
    assert rows["a/one.png"]["boxes"] == [{"label": "Mass", "x": 1.0, "y": 2.0, "width": 4.0, "height": 8.0}]
    assert rows["a/one.png"]["patient_id"] == rows["a/four.dcm"]["patient_id"]
    assert manifest["patient_id_from"] == {"PatientID": 1, "file": 1, "labels.csv": 1}


def test_pictures_need_a_key(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CXR_PSEUDONYM_KEY", raising=False)
    assert main(["preprocess", "--raw", str(raw), "--out", str(tmp_path / "out"), "--set", "runtime.workers=1"]) == 2
    assert "CXR_PSEUDONYM_KEY is not set" in capsys.readouterr().err


def test_there_is_no_official_split(raw: Path) -> None:
    with pytest.raises(UserError, match="the layout `table` has no official split"):
        table(raw, "table", split="official")
