"""What raw folders hold besides files with images of their own: links, special files, stray files, one UID for several images."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.uid import JPEGLSLossless

from components.__main__ import main
from components.common.formats import shards
from components.common.runs.local_files import walk_folder
from components.preprocess.deidentify import ENVIRONMENT_VARIABLE, Pseudonyms
from components.preprocess.params import LAYOUTS
from tests.common.dicom.phantoms import picture, write
from tests.preprocess.layouts import miniature
from tests.preprocess.test_partitions import merge, partition
from tests.preprocess.test_run import KEY, arguments, digests_of, error_of, manifest_of, rows_of


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def quarantine_of(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["path"]: (row["reason"], row["detail"]) for row in pq.read_table(folder / "quarantine.parquet").to_pylist()}


def counts_of(folder: Path) -> tuple[int, int, int, int]:
    counts: dict[str, Any] = manifest_of(folder)["counts"]
    return counts["files"], counts["rows"], counts["quarantined"], counts["duplicates"]


def test_linked_folders_are_read_and_what_has_no_content_is_named(tmp_path: Path, raw: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for number in range(2):
        write(raw / f"{number}.dcm", picture(seed=number))
    for number in range(2, 5):
        write(elsewhere / "ward" / f"{number}.dcm", picture(seed=number))
    (raw / "hospital").symlink_to(elsewhere)
    (raw / "file.dcm").symlink_to(elsewhere / "ward" / "2.dcm")
    (elsewhere / "ward" / "back").symlink_to(elsewhere)
    (raw / "up").symlink_to(tmp_path)
    (raw / "gone.dcm").symlink_to(elsewhere / "gone.dcm")
    (raw / "itself").symlink_to("itself")
    os.mkfifo(raw / "pipe.dcm")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(raw / "socket"))
        assert main(arguments(tmp_path)) == 0
        for number in range(2):
            assert partition(tmp_path, number, 2) == 0
    assert counts_of(tmp_path / "shards") == (12, 5, 6, 1)
    folder, link = "a link to a folder that it lies in", "a link that cannot be followed ({})"
    assert quarantine_of(tmp_path / "shards") == {
        "gone.dcm": ("not_a_file", link.format("No such file or directory")),
        "hospital/ward/back": ("not_a_file", folder),
        "itself": ("not_a_file", link.format("Too many levels of symbolic links")),
        "pipe.dcm": ("not_a_file", "a named pipe"),
        "socket": ("not_a_file", "a socket"),
        "up": ("not_a_file", folder),
    }
    assert merge(tmp_path, 1, 0) == 0
    assert digests_of(tmp_path / "merged") == digests_of(tmp_path / "shards")


@pytest.mark.parametrize("own", [True, False])
def test_a_folder_with_several_links_is_read_once(tmp_path: Path, own: bool) -> None:
    """PNG files have no id of their own: under two paths, one image would be two, of two patients, perhaps in two splits."""
    top = tmp_path / "top"
    folder = top / "m" if own else tmp_path / "elsewhere"
    (folder / "ward").mkdir(parents=True)
    top.mkdir(exist_ok=True)
    for name in ("1.png", "ward/2.png"):
        (folder / name).touch()
    for link, target in {"a": folder, "z": folder, "b": folder / "ward", "n": folder / "ward"}.items():
        (top / link).symlink_to(target)
    listed = {entry.path: entry.fault for entry in walk_folder(str(top))}
    files = sorted(path for path, fault in listed.items() if not fault)
    assert files == (["m/1.png", "m/ward/2.png"] if own else ["a/1.png", "a/ward/2.png"])
    assert {fault for fault in listed.values() if fault} == {"a folder that is read under another path"}
    assert len(listed) == len(files) + (4 if own else 3)


def test_the_output_must_not_lie_behind_a_link(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(raw / "a" / "1.dcm")
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for out in ("elsewhere/shards", "elsewhere/deep/shards", "raw/linked/shards"):
        assert main(arguments(tmp_path, out=out)) == 2
        assert f"lies inside {raw}/linked, a linked folder whose files are all read; choose another --out" in capsys.readouterr().err
    (tmp_path / "aside").mkdir()
    (raw / "linked").unlink()
    (raw / "out").symlink_to(tmp_path / "aside")
    assert main(arguments(tmp_path, out="raw/out")) == 2 and "lies inside the raw folder" in capsys.readouterr().err
    assert list((tmp_path / "aside").iterdir()) == []


STRAY = (".DS_Store", "._{name}", "Thumbs.db", "desktop.ini", "DICOMDIR", "@eaDir/{name}", "__MACOSX/{name}", "{name}:Zone.Identifier")
SMALLEST = {
    "table": {"a/1.dcm": None},
    "folders": {"NORMAL/1.png": None},
    "nih": {
        "images/1.png": None,
        "Data_Entry_2017.csv": "Image Index,Finding Labels,Patient ID,Patient Age,View Position\n1.png,Mass,1,5,PA\n",
    },
    "rsna": {
        "stage_2_train_images/1.dcm": None,
        "stage_2_detailed_class_info.csv": "patientId,class\n1,Normal\n",
        "stage_2_train_labels.csv": "patientId,x,y,width,height,Target\n1,,,,,0\n",
    },
    "vindr": {"train/1.dicom": None, "train.csv": "image_id,class_name,rad_id,x_min,y_min,x_max,y_max\n1,No finding,R1,,,,\n"},
    "chexpert": {
        "train/patient1/study1/1.jpg": None,
        "train.csv": "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
        "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
        "x/train/patient1/study1/1.jpg,Male,5,Frontal,PA,1,,,,,,,,,,,,,\n",
    },
}
"""Layout -> the files of its smallest data set; an image has no text."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stray_files_count_in_no_layout(tmp_path: Path, raw: Path, layout: str) -> None:
    for path, text in SMALLEST[layout].items():
        if text:
            (raw / path).write_text(text)
            continue
        image = raw / path
        miniature.write_picture(image) if path.endswith("g") else miniature.write_dicom(image)
        for name in STRAY:
            stray = image.parent / name.format(name=image.name)
            stray.parent.mkdir(exist_ok=True)
            shutil.copyfile(__file__, stray)
    assert main(arguments(tmp_path, f"layout={layout}", "max_quarantined=0")) == 0
    assert counts_of(tmp_path / "shards") == (1, 1, 0, 0)


def test_the_same_image_with_another_header_is_a_duplicate(tmp_path: Path, raw: Path) -> None:
    for name, elements in {"b.dcm": {}, "a.dcm": {"syntax": JPEGLSLossless, "PatientID": "first", "StudyDescription": "again"}}.items():
        write(raw / name, picture(200, 160, bits=12), SOPInstanceUID="2.25.7", **elements)
    assert main(arguments(tmp_path)) == 0
    assert counts_of(tmp_path / "shards") == (2, 1, 0, 1)
    assert rows_of(tmp_path / "shards")[0]["transfer_syntax"] == JPEGLSLossless


def test_different_images_under_one_uid_are_all_refused(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):  # the last two are the same image
        write(raw / f"{number}.dcm", picture(seed=min(number, 2)), SOPInstanceUID="2.25.7", PatientID=f"P{number}")
    write(raw / "mirrored.dcm", picture(seed=9)[:, ::-1].copy(), SOPInstanceUID="2.25.8")
    write(raw / "upright.dcm", picture(seed=9), SOPInstanceUID="2.25.8")
    write(raw / "refused.dcm", picture(seed=8), SOPInstanceUID="2.25.9", Modality="CT")
    good = write(raw / "good.dcm", picture(seed=5), SOPInstanceUID="2.25.9")
    (raw / "labels.csv").write_text("image,Mass\n2.25.7,1\n2.25.9,0\n")
    assert main(arguments(tmp_path, "workers=1")) == 0
    assert counts_of(tmp_path / "shards") == (8, 1, 7, 0)
    (row,) = rows_of(tmp_path / "shards")
    assert row["image_id"] == Pseudonyms(KEY.encode()).image(good.SOPInstanceUID)
    quarantine = quarantine_of(tmp_path / "shards")
    refused = [f"{number}.dcm" for number in range(4)]
    detail = "one of 4 files with this SOPInstanceUID, which hold different images; give each its own UID, or leave only the right one"
    assert {quarantine.pop(name) for name in refused} == {("conflicting_uid", detail)}
    assert {name: reason for name, (reason, _) in quarantine.items()} == {
        "mirrored.dcm": "conflicting_uid",
        "upright.dcm": "conflicting_uid",
        "refused.dcm": "wrong_modality",
    }
    content = (tmp_path / "shards" / "report.html").read_text()
    assert "conflicting_uid" in content and manifest_of(tmp_path / "shards")["counts"]["reasons"]["conflicting_uid"] == 6
    assert main(arguments(tmp_path, "workers=2", out="two")) == 0
    for number in range(3):
        assert partition(tmp_path, number, 3) == 0
    assert merge(tmp_path, 2, 0, 1) == 0
    assert digests_of(tmp_path / "two") == digests_of(tmp_path / "shards") == digests_of(tmp_path / "merged")
    assert "7 of 8 files are quarantined (conflicting_uid 6, wrong_modality 1)" in error_of(tmp_path, capsys, "max_quarantined=0.5")


def test_rows_do_not_depend_on_the_number_of_parts(tmp_path: Path, raw: Path) -> None:
    for number in range(6):
        write(raw / f"{number}.dcm", picture(seed=number), SOPInstanceUID="2.25.7" if number < 2 else f"2.25.1{number}")
    found = []
    for parts in (1, 5):
        assert main(arguments(tmp_path, f"parts={parts}", out=f"{parts}")) == 0
        found.append({row["image_id"]: shards.decode(row) for row in rows_of(tmp_path / f"{parts}")})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    assert all(np.array_equal(image, found[1][name]) for name, image in found[0].items())
