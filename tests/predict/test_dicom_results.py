"""Results as DICOM: read by pydicom and by dcmtk, and compared with the predictions and the files that they reference."""

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from components.__main__ import main
from components.common.errors import UserError
from components.params import Params
from components.predict import run as predict
from components.predict.finding_codes import IN_STANDARD, PRIVATE, code_of
from components.preprocess.deidentify import load_pseudonyms
from components.simulate import run as simulate
from tests.heads import PARAMS, Heads
from tests.register import folders

PROGRAMS = ("dcm2pnm", "dcmp2pgm", "dcmpschk", "dsrdump")
needs_dcmtk = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS), reason="dcmtk is not installed (Debian: apt-get install dcmtk)"
)
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
CERTAINTY, FINDING, COUNT = "Certainty of Finding", "Finding", "Number of lesions"


@pytest.fixture(scope="module")
def params() -> Params:
    content: dict[str, Any] = {"runtime": {"workers": 1}, "simulate": {"patients": 3, "size": 80}, "preprocess": {"size": 48, "parts": 1}}
    return Params.model_validate(content)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "cohort"
    simulate.run(out=str(folder), **params.arguments("simulate"))
    for name in ("labels.csv", "boxes.csv"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    return folders.write_model(tmp_path / "model", 1, folders.targets_of(1))


def reports(folder: Path, modality: str = "SR") -> dict[str, Dataset]:
    """Returns the objects of a modality by the SOPInstanceUID of the image that they reference."""
    found = {}
    for path in sorted(folder.glob(f"*/{modality}.*.dcm")):
        made = dcmread(path)
        assert path.name == f"{modality}.{made.SOPInstanceUID}.dcm" and path.parent.name == made.StudyInstanceUID
        found[referenced(made)["SOPInstanceUID"]] = made
    assert len(found) == len(list(folder.glob(f"*/{modality}.*.dcm")))
    return found


def referenced(made: Dataset) -> dict[str, str]:
    """Returns the UIDs of the only image that an SR or PR object references."""
    if made.Modality == "PR":
        (series,) = made.ReferencedSeriesSequence
        (image,) = series.ReferencedImageSequence
        study = made.StudyInstanceUID
    else:
        (evidence,) = made.CurrentRequestedProcedureEvidenceSequence
        (series,) = evidence.ReferencedSeriesSequence
        (image,) = series.ReferencedSOPSequence
        study = evidence.StudyInstanceUID
    return dict(zip(UIDS, (study, series.SeriesInstanceUID, image.ReferencedSOPInstanceUID, image.ReferencedSOPClassUID), strict=True))


def groups(report: Dataset) -> list[dict[str, Any]]:
    """Returns what each measurement group of a TID 1500 report says, by the meaning of the concepts."""
    (container,) = (item for item in report.ContentSequence if meaning_of(item) == "Imaging Measurements")
    return [{meaning_of(item): value_of(item) for item in group.ContentSequence} for group in container.ContentSequence]


def meaning_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def value_of(item: Dataset) -> Any:
    if item.ValueType == "NUM":
        return float(item.MeasuredValueSequence[0].NumericValue)
    if item.ValueType == "CODE":
        code = item.ConceptCodeSequence[0]
        return code.get("CodeValue") or code.LongCodeValue, code.CodingSchemeDesignator
    if item.ValueType == "SCOORD":
        return np.reshape(item.GraphicData, (-1, 2))
    return item.get("TextValue")


def sources(raw: Path) -> dict[str, Dataset]:
    """Returns the source files by image_id."""
    found = (dcmread(path) for path in sorted(raw.rglob("*.dcm")))
    return {load_pseudonyms().image(file.SOPInstanceUID): file for file in found}


def run(program: str, *arguments: object) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def check_definition(path: Path) -> None:
    """Checks an object against its definition in PS3.3 with dciodvfy (Debian: apt-get install dicom3tools), where that is installed.

    It asks for Laterality, which only paired body parts have.
    """
    if shutil.which("dciodvfy"):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert not re.findall("^(?:Error|Warning)(?!.*<Laterality>).*", done.stdout + done.stderr, re.MULTILINE), path


@needs_dcmtk
def test_each_image_has_a_report_with_the_probabilities(
    model: str, phantoms: Path, params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture, own_mlflow: Path
) -> None:
    caplog.set_level(logging.INFO)
    out, dicom = tmp_path / "out", tmp_path / "dicom"
    predict.run(model=model, raw=str(phantoms), out=str(out), dicom=str(dicom), **params.arguments("predict"))
    table = pd.read_parquet(out / "predictions.parquet").set_index("image_id")
    made, files = reports(dicom), sources(phantoms)
    assert sorted(files) == sorted(table.index) and len(made) == len(files) > 3
    sha256 = json.loads(Path(model, "model.json").read_text())["sha256"]
    for image_id, source in files.items():
        report = made[source.SOPInstanceUID]
        assert referenced(report) == {name: source[name].value for name in UIDS}
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"):
            assert report[keyword].value == source[keyword].value, keyword
        assert (report.ContentQualification, report.PreliminaryFlag, report.VerificationFlag) == ("RESEARCH", "PRELIMINARY", "UNVERIFIED")
        said = groups(report)
        assert [group[FINDING] for group in said] == [("60046008", "SCT"), ("27925004", "SCT")]
        expected = [100 * table.loc[image_id, f"score_{name}"] for name in folders.FINDINGS]
        np.testing.assert_allclose([group[CERTAINTY] for group in said], expected, atol=0.006)
        assert {(group["Algorithm Name"], group["Algorithm Version"]) for group in said} == {("cxr-classify", sha256[:12])}
        path = dicom / report.StudyInstanceUID / f"SR.{report.SOPInstanceUID}.dcm"
        dump = run("dsrdump", "-Ee", path)
        assert dump.count(f'"{CERTAINTY}"') == 2 and not re.search("^[EWF]: (?!The VR checker does not support)", dump, re.MULTILINE)
        check_definition(path)
        assert re.findall(r'"([\d.]+)" \(%,UCUM', dump) == [f"{group[CERTAINTY]:g}" for group in said]

    secrets = {str(file[name].value) for file in files.values() for name in ("PatientID", "PatientName", *UIDS[:3])}
    shared = [path for folder in (out, own_mlflow.parent) for path in folder.rglob("*") if path.is_file()]
    assert shared and not [path for path in shared if any(secret.encode() in path.read_bytes() for secret in secrets)]
    assert not any(secret in caplog.text for secret in secrets)
    assert f"{len(files)} reports and 0 presentation states in {dicom} ({len(files)} new)" in caplog.text

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in dicom.rglob("*.dcm")}
    next(iter(before)).unlink()
    predict.run(model=model, raw=str(phantoms), out=str(out), dicom=str(dicom), **params.arguments("predict"))
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in dicom.rglob("*.dcm")}
    assert before.keys() == after.keys() and sum(before[path] != after[path] for path in before) == 1
    assert "(1 new)" in caplog.text


@pytest.fixture(scope="module")
def detected(heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Results of a detector with a threshold that about half of the images pass by three boxes, and that threshold."""
    folder = tmp_path_factory.mktemp("detected")
    shutil.copytree(heads.detect, folder / "model")
    known = heads.predictions("detect")["boxes"]
    threshold = float(np.median([sorted(box["score"] for box in boxes)[-3] for boxes in known]))
    about = json.loads((folder / "model" / "model.json").read_text())
    (folder / "model" / "model.json").write_text(json.dumps(about | {"threshold": threshold}))
    predict.run(
        model=str(folder / "model"),
        raw=str(heads.raw),
        out=str(folder / "out"),
        dicom=str(folder / "dicom"),
        **PARAMS.arguments("predict"),
    )
    return folder, threshold


def test_boxes_are_regions_of_the_report_and_outlines_of_the_presentation_state(heads: Heads, detected: tuple[Path, float]) -> None:
    folder, threshold = detected
    table, rows = pd.read_parquet(folder / "out" / "predictions.parquet").set_index("image_id"), heads.rows()
    labels = json.loads((folder / "model" / "model.json").read_text())["classes"]
    made, states, outlines = reports(folder / "dicom"), reports(folder / "dicom", "PR"), 0
    assert len(made) == len(table) and 0 < len(states) <= len(made)
    for image_id, source in sources(heads.raw).items():
        said, shown = groups(made[source.SOPInstanceUID]), [box for box in table.loc[image_id, "boxes"] if box["score"] >= threshold]
        scale = np.array([source.Columns / rows.loc[image_id, "width"], source.Rows / rows.loc[image_id, "height"]])
        counts = {group[FINDING][0]: group[COUNT] for group in said if COUNT in group}
        assert counts == {code_of(label).value: sum(box["label"] == label for box in shown) for label in labels}
        regions = sorted((group[FINDING][0], group[CERTAINTY], *group["Image Region"].ravel()) for group in said if CERTAINTY in group)
        expected = []
        for box in shown:
            (left, top), (width, height) = np.array([box["x"], box["y"]]) * scale, np.array([box["width"], box["height"]]) * scale
            corners = ((left, top), (left + width, top), (left + width, top + height), (left, top + height), (left, top))
            expected.append((code_of(box["label"]).value, round(100 * box["score"], 2), *np.ravel(corners)))
        assert [each[0] for each in regions] == [each[0] for each in sorted(expected)]
        np.testing.assert_allclose([each[1:] for each in regions], [each[1:] for each in sorted(expected)], atol=1e-3)
        assert (source.SOPInstanceUID in states) == bool(shown)
        if shown:
            state = states[source.SOPInstanceUID]
            assert referenced(state) == {name: source[name].value for name in UIDS}
            (annotation,) = state.GraphicAnnotationSequence
            drawn = [item.GraphicData for item in annotation.GraphicObjectSequence]
            np.testing.assert_allclose(sorted(drawn), sorted(each[2:] for each in regions), atol=1e-3)
            assert {item.GraphicAnnotationUnits for item in annotation.GraphicObjectSequence} == {"PIXEL"}
            outlines += len(drawn)
    assert outlines > len(states)
    check_definition(next((folder / "dicom").glob("*/SR.*.dcm")))


@needs_dcmtk
def test_a_presentation_state_shows_the_image_as_its_file_does(heads: Heads, detected: tuple[Path, float], tmp_path: Path) -> None:
    states = reports(detected[0] / "dicom", "PR")
    seen = set()
    for path in sorted(heads.raw.rglob("*.dcm")):
        source = dcmread(path)
        lut, window = "VOILUTSequence" in source, "WindowWidth" in source
        kind = source.PhotometricInterpretation, lut, window, "RescaleSlope" in source
        if source.SOPInstanceUID not in states or kind in seen:
            continue
        seen.add(kind)
        plain, state = tmp_path / "plain.dcm", tmp_path / "state.dcm"
        source.decompress(generate_instance_uid=False) if source.file_meta.TransferSyntaxUID.is_compressed else None
        source.save_as(plain)
        states[source.SOPInstanceUID].save_as(state)
        run("dcmp2pgm", "-p", state, plain, tmp_path / "state.pgm")
        run("dcm2pnm", *(("+Wi", 1) if window else ("+Wl", 1) if lut else ()), plain, tmp_path / "plain.pgm")
        shown, expected = (np.array(Image.open(tmp_path / f"{name}.pgm"), int) for name in ("state", "plain"))
        assert shown.shape == expected.shape == (source.Rows, source.Columns)
        assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.99, kind
        assert not re.search(r"^(Error|E:)", run("dcmpschk", state), re.MULTILINE)
        check_definition(state)
    assert {kind[0] for kind in seen} == {"MONOCHROME1", "MONOCHROME2"} and any(kind[1] for kind in seen)


def _without(*keywords: str) -> Callable[[Dataset], None]:
    def change(file: Dataset) -> None:
        for keyword in keywords:
            delattr(file, keyword)

    return change


def _with(**values: Any) -> Callable[[Dataset], None]:
    def change(file: Dataset) -> None:
        for keyword, value in values.items():
            setattr(file, keyword, value)

    return change


def _in(charset: str | list[str] | None, name: bytes) -> Callable[[Dataset], None]:
    def change(file: Dataset) -> None:
        file.SpecificCharacterSet = charset
        file.add_new("PatientName", "PN", name)

    return change


EMPTY = {"PatientName": "", "StudyID": ""}
CASES: dict[str, tuple[Callable[[Dataset], None], dict[str, Any] | str]] = {
    "no study id, no name": (_without("StudyID", "PatientName"), EMPTY),
    "no patient": (_without("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"), {"PatientID": "", "PatientSex": ""}),
    "another sex": (_with(PatientSex="U"), {"PatientSex": ""}),
    "no dates": (_with(StudyDate="unknown", StudyTime="noon", PatientBirthDate="19999999"), {"StudyDate": "", "PatientBirthDate": ""}),
    "leading zeros": (_with(StudyInstanceUID="1.2.007.1"), {"StudyInstanceUID": "1.2.007.1"}),
    "Latin-1": (_in("ISO_IR 100", "Müller^Jörg".encode("latin-1")), {"PatientName": "Müller^Jörg"}),
    "UTF-8": (_in("ISO_IR 192", "王^小東".encode()), {"PatientName": "王^小東"}),
    "Japanese": (
        _in(["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
        {"PatientName": "Yamada^Tarou=山田^太郎"},
    ),
    "not UTF-8": (_in("ISO_IR 192", "Müller".encode("latin-1")), "text that is not in the character set of its file"),
    "no study": (_without("StudyInstanceUID"), "no valid StudyInstanceUID"),
    "a path": (_with(StudyInstanceUID="../../1.2"), "no valid StudyInstanceUID"),
    "no series": (_with(SeriesInstanceUID=""), "no valid SeriesInstanceUID"),
    "too long": (_with(SeriesInstanceUID="1." * 40 + "1"), "no valid SeriesInstanceUID"),
    "no class": (_without("SOPClassUID"), "no valid SOPClassUID"),
    "unknown class": (_with(SOPClassUID="1.2.3.4"), "SR: an attribute that cannot be used"),
    "no image uid": (_without("SOPInstanceUID"), "no valid SOPInstanceUID"),
    "several frames": (_with(NumberOfFrames=2), "quarantined"),
    "one frame": (_with(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3", NumberOfFrames=1), {}),
}
"""Changes to a file -> attributes of its report, or why there is none."""


@pytest.mark.filterwarnings("ignore")
def test_files_of_hospitals(
    model: str, phantoms: Path, params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", "k" * 32)
    raw, out, dicom = tmp_path / "raw", tmp_path / "out", tmp_path / "dicom"
    raw.mkdir()
    files = map(dcmread, sorted(phantoms.rglob("*.dcm")))
    plain = next(file for file in files if file.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian)
    for number, (name, (change, _)) in enumerate(CASES.items(), 1):
        buffer = BytesIO()
        plain.save_as(buffer)
        file = dcmread(BytesIO(buffer.getvalue()))
        file.SOPInstanceUID = f"1.2.3.{number}"
        file[0x7FE00010].value = bytes([number, 0]) + file.PixelData[2:]
        change(file)
        file.save_as(raw / f"{name}.dcm")
    shutil.copy(raw / "Latin-1.dcm", raw / "copy of Latin-1.dcm")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(raw / "picture.png")

    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"max_quarantined": 0.5})})
    predict.run(model=model, raw=str(raw), out=str(out), dicom=str(dicom), **params.arguments("predict"))
    made = reports(dicom)
    reasons: list[str] = ["no DICOM file"]
    for number, (name, (_, expected)) in enumerate(CASES.items(), 1):
        report = made.pop(f"1.2.3.{number}", None)
        if isinstance(expected, str):
            assert report is None, name
            reasons += [expected] if expected != "quarantined" else []
        else:
            assert report is not None, name
            assert {keyword: str(report[keyword].value or "") for keyword in expected} == expected, name
    assert not made
    counts = ", ".join(f"{reason} {reasons.count(reason)}" for reason in sorted(set(reasons)))
    assert f"{len(reasons)} results could not be written as DICOM ({counts})" in caplog.text
    assert len(pd.read_parquet(out / "predictions.parquet")) == len(CASES) - 1 + 1  # one is quarantined, and there is the picture
    assert not re.search("Müller|Yamada|1\\.2\\.3", caplog.text)


def test_where_results_must_not_lie(
    model: str, heads: Heads, phantoms: Path, params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sections = tmp_path / "out", params.arguments("predict")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "file").write_text("")

    def refused(dicom: object, **others: Any) -> str:
        with pytest.raises(UserError) as error:
            predict.run(**{"model": model, "raw": str(phantoms), "out": str(out), "dicom": str(dicom), **sections, **others})
        assert not (tmp_path / "dicom").exists()
        return str(error.value)

    assert refused("s3://bucket/dicom") == (
        "s3://bucket/dicom: results as DICOM name patients and stay on a disk of the hospital; give --dicom a local folder"
    )
    assert "name patients" in refused("mlflow-artifacts:/1/dicom")
    for inside in (out, out / "dicom", tmp_path / "out.partial" / "dicom", tmp_path / "link" / "dicom"):
        assert re.search("lies inside .*out.* of --out: .*choose another folder for --dicom", refused(inside))
    assert "of --raw: its files are all read the next time" in refused(phantoms / "dicom")
    assert "is a file; --dicom must be a folder" in refused(tmp_path / "file")
    assert "give --raw instead of --shards" in refused(tmp_path / "dicom", raw=None, shards=[str(heads.shards)])
    with pytest.raises(UserError, match="a model of invert has no findings to be reported; run it without --dicom"):
        predict.run(model=str(heads.invert), raw=str(phantoms), out=str(out), dicom=str(tmp_path / "dicom"), **sections)
    command = ["predict", "--model", model, "--raw", str(phantoms), "--out", str(out), "--dicom", "s3://bucket/dicom"]
    assert main(command) == 2 and capsys.readouterr().err.count("\n") == 1


def test_codes_that_are_said_to_be_in_the_standard_are() -> None:
    known = {(code.scheme_designator, code.value) for scheme in (codes.DCM, codes.SCT) for code in map(scheme.__getattr__, scheme.dir())}
    assert {(code.scheme_designator, code.value) for code in IN_STANDARD.values()} <= known
    assert code_of("Pleural_Effusion") == code_of("pleural effusion") == code_of("Effusion")
    private = code_of("Nodule/Mass \\ " + "x" * 99)
    assert private.scheme_designator == PRIVATE and len(private.meaning) == 64 and "\\" not in private.value
