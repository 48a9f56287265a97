"""No output holds identifying values from a header, and docs/privacy.md agrees with the code."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.__main__ import main
from components.common.dicom import dicom_file
from components.common.dicom.elements import Elements
from components.common.dicom.manufacturer import read_manufacturer
from components.common.dicom.views import canonical_view, is_accepted, read_view
from components.common.formats import shards
from components.preprocess import relink
from components.preprocess.deidentify import ALLOW_LIST, ENVIRONMENT_VARIABLE, PSEUDONYMS, Pseudonyms, describe
from tests import ROOT
from tests.common.dicom.phantoms import dataset, picture, to_bytes, write
from tests.preprocess.test_run import KEY, arguments, manifest_of, rows_of

PRIVACY = (ROOT / "docs" / "privacy.md").read_text()
NAME, NUMBER, DATE, UID = "QUARTERMAINE", "5550123", "19570318", "1.2.3.987654321"
SECRETS = (NAME, NUMBER, DATE, "987654321", KEY)
BY_VR: dict[str, Any] = {
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), f"{NAME} {NUMBER}"),
    **{"AE": NAME, "CS": NAME, "PN": f"{NAME}^Ottilie", "UR": f"http://{NAME}/{NUMBER}", "UI": UID},
    **{"DA": DATE, "DT": f"{DATE}101112", "TM": "101112", "IS": NUMBER, "DS": NUMBER, "UL": int(NUMBER), "SL": int(NUMBER)},
}
# Attributes that decide whether a file is quarantined; they have tests of their own below.
JUDGED = {"Modality", "BodyPartExamined", "ViewPosition", "SOPClassUID", "SOPInstanceUID", "PatientAge", "NumberOfFrames"}
IMAGE_GROUPS = {0x0000, 0x0002, 0x0028, 0x7FE0}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)


def identifying(**elements: Any) -> FileDataset:
    """Returns a radiograph with identifying values in every attribute that can hold one, including overlays and private elements."""
    made = dataset(picture(64, 60), **elements)
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 not in IMAGE_GROUPS and keyword not in JUDGED and vr in BY_VR:
            made.add_new(tag, vr, BY_VR[vr])
    secret = Dataset()
    secret.PatientName, secret.PatientID = f"{NAME}^Ottilie", NUMBER
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr == "SQ" and tag >> 16 not in IMAGE_GROUPS and keyword not in ("ViewCodeSequence", "IconImageSequence"):
            made.add_new(tag, "SQ", Sequence([secret]))
    made.add_new(0x00281055, "LO", NAME)  # Window Center & Width Explanation
    made.add_new(0x60003000, "OW", (NAME * 40).encode())  # overlay
    made.add_new(0x50003000, "OW", (NAME * 40).encode())  # curve
    made.add_new(0x00090010, "LO", f"{NAME} CREATOR")
    made.add_new(0x00091001, "LT", f"{NAME} {NUMBER}")
    icon = Dataset()
    icon.add_new(0x7FE00010, "OB", (NAME * 40).encode())
    made.IconImageSequence = Sequence([icon])
    return made


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the content of every file of an output, Parquet files also decompressed."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        yield f"{path.name} decompressed", str(table.drop_columns([n for n in ("pixels", "path") if n in table.column_names])).encode()
        yield f"{path.name} rows", str([{k: v for k, v in row.items() if k != "path"} for row in table.to_pylist()]).encode()


def test_nothing_that_identifies_is_in_any_output(tmp_path: Path, mlflow_database: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    files = {"kept": {}, "view": {"ViewPosition": NAME}, "part": {"BodyPartExamined": NAME}, "modality": {"Modality": NAME}}
    for name, elements in files.items():
        (raw / f"{name}.dcm").write_bytes(to_bytes(identifying(**elements)))
    content = to_bytes(identifying(SOPInstanceUID="1.2.3.987654321.1"))
    (raw / "truncated.dcm").write_bytes(content[:-1000])
    assert sum(content.count(secret.encode()) for secret in SECRETS) > 2000
    assert main(arguments(tmp_path)) == 0
    (row,) = rows_of(tmp_path / "shards")
    assert (row["manufacturer"], row["sex"]) == (None, None)
    found = [*contents(tmp_path / "shards"), ("mlflow", mlflow_database.read_bytes())]
    assert {"report.html", "manifest.json", "quarantine.parquet", "text_suspected.csv", "run.json"} <= {name for name, _ in found}
    assert [(name, secret) for name, content in found for secret in SECRETS if secret.encode() in content.upper()] == []


def test_pixels_contain_no_overlay_or_icon() -> None:
    plain, full = (dicom_file.open_file(to_bytes(made)) for made in (dataset(picture(64, 60)), identifying()))
    stored = [dicom_file.prepare(*opened)()[0] for opened in (plain, full)]
    np.testing.assert_array_equal(*stored)


def test_every_column_is_accounted_for() -> None:
    header = dicom_file.open_file(to_bytes(dataset(picture())))[1]
    assert set(describe(header, None)) == set(ALLOW_LIST)
    derived, tables = {"split", "pixels", "codec", "height", "width", "bits"}, {"labels", "boxes"}
    assert set(shards.SCHEMA.names) == derived | tables | set(ALLOW_LIST) | set(PSEUDONYMS)


def test_the_columns_depend_on_the_attributes_of_the_allow_list_alone() -> None:
    plain, full = dataset(picture(64, 60)), identifying()
    for keyword in (keyword for keywords in ALLOW_LIST.values() for keyword in keywords if keyword != "TransferSyntaxUID"):
        full.pop(keyword, None)
        if keyword in plain:
            full[keyword] = plain[keyword]
    columns = [describe(dicom_file.open_file(to_bytes(made))[1], None) for made in (plain, full)]
    assert columns[0] == columns[1]


@pytest.mark.parametrize("name", [*ALLOW_LIST, *PSEUDONYMS, *shards.SCHEMA.names])
def test_the_privacy_page_names_every_column(name: str) -> None:
    assert f"`{name}`" in PRIVACY
    for keyword in (*ALLOW_LIST.get(name, ()), *PSEUDONYMS.get(name, ())):
        assert keyword in PRIVACY.replace(" ", "")


@pytest.mark.parametrize(
    ("maker", "kept"),
    [
        ("GE MEDICAL SYSTEMS", "GE MEDICAL SYSTEMS"), ("Philips", "PHILIPS"), ("Zimmerman^Zebulon", ""), ("Dr. Zimmerman", ""),
        ("Saint Elsewhere", ""), ("MRN55501234", ""), ("call 5550123", ""), ("", ""), ("Elsewhere Medical", ""), ("ELSEWHERES", ""),
        ("Siemens Elsewhere", ""), ("Siemens Healthineers AG", "SIEMENS HEALTHINEERS AG"), ("Medical Center", "MEDICAL CENTER"),
        ("Roentgen AG", "ROENTGEN AG"),
    ],
)  # fmt: skip
def test_manufacturers_that_look_like_identifiers_are_dropped(maker: str, kept: str) -> None:
    assert read_manufacturer(Elements.of(dataset(picture(), Manufacturer=maker, InstitutionName="Saint Elsewhere Medical Center"))) == kept


def names_of_places() -> dict[str, Any]:
    """Returns elements that repeat a word, by where they are in the header."""
    person = Dataset()
    person.PerformingPhysicianName = "Elsewhere^Ann"
    inner = Dataset()
    inner.ContentSequence = Sequence([person])
    attributes = (
        "StationName",
        "InstitutionalDepartmentName",
        "PatientAddress",
        "PatientComments",
        "StudyDescription",
        "ManufacturerModelName",
    )
    return {
        **{keyword: {keyword: "Ward 3, Elsewhere"} for keyword in attributes},
        "private person": {(0x0009, 0x0010): ("LO", "SOMEBODY"), (0x0009, 0x1001): ("PN", "Elsewhere^Ann")},
        "private text": {(0x0009, 0x0010): ("LO", "SOMEBODY"), (0x0009, 0x1001): ("UN", b"at Elsewhere")},
        "person in a sequence": {"RequestAttributesSequence": [person]},
        "person in a sequence in a sequence": {"RequestAttributesSequence": [inner]},
        "address": {"RetrieveURL": "http://pacs.elsewhere.example"},
        "accents": {"StationName": "ÉLSEWHÈRE"},
    }


@pytest.mark.parametrize("undefined_length", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("place", names_of_places())
def test_a_manufacturer_that_repeats_other_text_of_the_header_is_dropped(place: str, syntax: Any, undefined_length: bool) -> None:
    def manufacturer(name: str) -> str:
        made = dataset(picture(), syntax=syntax, Manufacturer=name, SpecificCharacterSet="ISO_IR 192")
        for key, value in names_of_places()[place].items():
            if isinstance(key, str):
                setattr(made, key, value)
            else:
                made.add_new(key, *value)
        for element in made:
            if element.VR == "SQ":
                element.is_undefined_length = undefined_length
        return dicom_file.open_file(to_bytes(made))[1].manufacturer

    assert manufacturer("Elsewhere") == manufacturer("X-Ray of elsewhere") == ""
    assert manufacturer("Nowhere") == "NOWHERE" and manufacturer("Philips") == "PHILIPS"


@pytest.mark.parametrize(("maker", "other"), [("Müller", "Mueller"), ("Lodz", "ŁÓDŹ"), ("MUELLER", "müller"), ("Wu Li", "Li^Wu")])
def test_accents_case_and_order_make_no_difference(maker: str, other: str) -> None:
    made = dataset(picture(), Manufacturer=maker, PatientName=other, SpecificCharacterSet="ISO_IR 192")
    assert dicom_file.open_file(to_bytes(made))[1].manufacturer == ""


def test_elements_that_pydicom_cannot_convert_do_not_matter() -> None:
    content = to_bytes(dataset(picture(), Manufacturer="Nowhere"))
    at = content.index(b"\xe0\x7f\x10\0")
    for extra in (b"\x29\0\x01\x10OJ\x04\0abcd", b"\x29\0\x01\x10OJ\0\0", b"\x29\0\x01\x10OB\0\0\0\0\0\0"):
        assert dicom_file.open_file(content[:at] + extra + content[at:])[1].manufacturer == "NOWHERE"


def test_a_manufacturer_in_another_character_set_is_compared_too() -> None:
    made = dataset(picture(), Manufacturer="Łódź", StationName="Łódź 3", SpecificCharacterSet="ISO_IR 101")
    assert dicom_file.open_file(to_bytes(made))[1].manufacturer == ""


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"), (" pa ", "PA"), ("Postero-Anterior", "PA"), ("ANTERO_POSTERIOR", "AP"), ("L LAT", "LL"), ("Lat", "LATERAL"),
        ("Right Lateral", "RL"), ("LLD", "LLD"), ("ap axial", "AP AXIAL"), ("", ""),
        ("PA ERECT", "PA"), ("AP SUPINE", "AP"), ("Chest P.A. upright", "PA"),
        ("AP semi-erect", "AP"), ("ap liegend", "AP"), ("LAT ERECT", "LATERAL"), ("Portable", ""), ("AP LORDOTIC", "AP LORDOTIC"),
        ("PA/LAT", "PA/LAT"), ("Left Lateral Decubitus", "LEFT LATERAL DECUBITUS"), ("12", "12"),
    ],
)  # fmt: skip
def test_views_are_normalised(text: str, view: str) -> None:
    assert canonical_view(text) == view


def test_a_missing_view_position_is_read_from_the_view_code() -> None:
    def coded(value: str, view: str | None = None) -> str:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator = value, "SCT"
        return read_view(Elements.of(dataset(picture(), ViewPosition=view, ViewCodeSequence=Sequence([item]))))

    assert [coded(value) for value in ("272479007", "R-10206", "399198007", "399067008")] == ["PA", "AP", "RL", "LATERAL"]
    assert coded("399173006", view="PA") == "PA", "View Position goes first"
    assert coded("399162004") == "OTHER", "cranio-caudal is a view, and not a frontal one"
    assert read_view(Elements.of(dataset(picture(), ViewPosition=None, ViewCodeSequence=Sequence([])))) == ""


def test_lateral_accepts_either_side() -> None:
    assert is_accepted("LL", ("PA", "lateral")) and is_accepted("LATERAL", ("Lat",)) and is_accepted("LL", ("LL",))
    assert not is_accepted("LL", ("PA", "AP")) and not is_accepted("RL", ("LL",)) and not is_accepted("LATERAL", ("LL",))


def test_laterals_are_quarantined_unless_asked_for(tmp_path: Path) -> None:
    for index, view in enumerate(("PA", "LL", "LATERAL", "Left Lateral")):
        write(tmp_path / "raw" / f"{index}.dcm", picture(seed=index), ViewPosition=view)
    assert main(arguments(tmp_path)) == 0
    assert manifest_of(tmp_path / "shards")["counts"]["reasons"] == {"wrong_view": 3}
    assert main(arguments(tmp_path, "views=[PA,LATERAL]", out="both")) == 0
    assert sorted(row["view"] for row in rows_of(tmp_path / "both")) == ["LATERAL", "LL", "LL", "PA"]


def linked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ids: str, *options: str
) -> tuple[int, list[list[str]], str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(ids))
    code = relink.main(list(options))
    output = capsys.readouterr()
    return code, [line.split("\t") for line in output.out.splitlines()], output.err


def test_a_pseudonym_is_linked_back_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write(tmp_path / "raw" / "a.dcm", PatientID="MRN 7")
    write(tmp_path / "raw" / "b.dcm", picture(seed=1), PatientID=None, StudyInstanceUID="1.2.9")
    assert main(arguments(tmp_path)) == 0
    folder = str(tmp_path / "shards")
    rows = {row["image_id"]: row["patient_id"] for row in rows_of(tmp_path / "shards")}
    image_id = Pseudonyms(KEY.encode()).image(made.SOPInstanceUID)
    capsys.readouterr()
    ids = "MRN 5\n\n  MRN 7 \r\n"
    assert linked(monkeypatch, capsys, ids, "--shards", folder, "--only", rows[image_id])[:2] == (0, [[rows[image_id], "MRN 7"]])
    assert len(linked(monkeypatch, capsys, ids)[1]) == 2
    assert linked(monkeypatch, capsys, "1.2.9\n", "--kind", "study")[1][0][0] in rows.values()
    assert linked(monkeypatch, capsys, made.SOPInstanceUID, "--kind", "image")[1] == [[image_id, made.SOPInstanceUID]]
    assert linked(monkeypatch, capsys, "MRN 5\n", "--only", rows[image_id])[0] == 2
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "another key, as long as the first")
    code, lines, error = linked(monkeypatch, capsys, ids, "--shards", folder)
    assert (code, lines) == (2, []) and "made with key" in error and error.count("\n") == 1
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert linked(monkeypatch, capsys, ids)[0] == 2
