from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from components.common.formats.quarantine import Reason
from components.preprocess.deidentify import Pseudonyms
from components.preprocess.index import Index
from components.preprocess.labels import Record, Table
from components.preprocess.params import Preprocess
from components.preprocess.rows import Context, Note, process_file
from tests.common.dicom.phantoms import dataset, picture, to_bytes


def judge(content: bytes, table: Table | None = None, **params: Any) -> Note:
    context = Context("raw", Path("unused"), Preprocess(size=32, **params), Pseudonyms(b"k" * 16), table or Table(), Index())
    row, note = process_file(context, "folder/file", content)
    assert (row is None) == (note.reason is not None)
    return note


def chest(**elements: Any) -> bytes:
    return to_bytes(dataset(picture(), **elements))


def rgb() -> bytes:
    made = dataset(picture(60, 48), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    made.PixelData = picture(60, 48 * 3).tobytes()
    return to_bytes(made)


def no_pixels() -> bytes:
    made = dataset(picture())
    del made.PixelData
    return to_bytes(made)


FILES: dict[Reason, list[Callable[[], bytes]]] = {
    Reason.NOT_DICOM: [lambda: b"", lambda: b"ward round notes", lambda: bytes(4096), lambda: b"\x08\x00" + bytes(range(256)) * 8],
    Reason.NO_PIXELS: [no_pixels],
    Reason.WRONG_MODALITY: [lambda: chest(Modality="CT"), lambda: chest(Modality=None, SOPClassUID=CTImageStorage)],
    Reason.WRONG_BODY_PART: [
        lambda: chest(BodyPartExamined="HAND"),
        lambda: chest(BodyPartExamined="ABDOMEN"),
        lambda: chest(BodyPartExamined="THORACIC SPINE"),
    ],
    Reason.WRONG_VIEW: [
        lambda: chest(ViewPosition="LL"),
        lambda: chest(ViewPosition="LATERAL"),
        lambda: chest(ViewPosition="AP LORDOTIC"),
        lambda: chest(ViewPosition="LAT ERECT"),
    ],
    Reason.UNSUPPORTED_PHOTOMETRIC: [rgb, lambda: chest(PhotometricInterpretation="PALETTE COLOR")],
    Reason.BURNED_IN_TEXT: [lambda: chest(BurnedInAnnotation="YES")],
    Reason.UNREADABLE: [lambda: chest()[:-500], lambda: chest(Rows=600)],
    Reason.IMPLAUSIBLE_SIZE: [
        lambda: to_bytes(dataset(picture(20, 20))),
        lambda: to_bytes(dataset(picture(200, 40))),
        lambda: chest(PixelAspectRatio=["10", "1"]),
    ],
    Reason.BLANK_IMAGE: [lambda: to_bytes(dataset(np.zeros((60, 48), "u1"))), lambda: to_bytes(dataset(np.full((60, 48), 9, "u1")))],
}


@pytest.mark.parametrize(("reason", "index"), [(reason, index) for reason in FILES for index in range(len(FILES[reason]))])
def test_refused_files_and_their_reasons(reason: Reason, index: int) -> None:
    assert judge(FILES[reason][index]()).reason == reason


def test_every_reason_is_tested() -> None:
    elsewhere = {Reason.NOT_A_FILE, Reason.CONFLICTING_UID}  # found by the listing and by the merge
    assert {*FILES, *elsewhere} == set(Reason)


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "CR"},
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"Modality": None, "SOPClassUID": SecondaryCaptureImageStorage},
        {"Modality": None, "BodyPartExamined": None, "ViewPosition": None, "BurnedInAnnotation": None},
        {"BodyPartExamined": "Thorax"},
        {"BodyPartExamined": "PORT CHEST"},
        {"BodyPartExamined": "UNKNOWN"},
        {"BodyPartExamined": "N/A"},
        {"BodyPartExamined": "torace"},
        {"BodyPartExamined": "Cage thoracique"},
        {"BodyPartExamined": "GABBIA_TORACICA"},
        {"ViewPosition": "ap"},
        {"ViewPosition": "PA ERECT"},
        {"ViewPosition": "PORTABLE"},
        {"NumberOfFrames": 0},
        {"NumberOfFrames": 1},
        {"PixelAspectRatio": ["2", "1"]},
        {"BurnedInAnnotation": "NO"},
        {"SOPInstanceUID": None, "StudyInstanceUID": None, "PatientID": None},
    ],
    ids=str,
)
def test_missing_and_harmless_values_are_no_reason(elements: dict[str, Any]) -> None:
    assert judge(chest(**elements)).reason is None


def test_the_first_reason_that_holds_is_given() -> None:
    everything_wrong = {"BurnedInAnnotation": "YES", "ViewPosition": "LL", "BodyPartExamined": "HAND", "Rows": 600}
    assert judge(chest(**everything_wrong)).reason == "wrong_body_part"
    assert judge(chest(**everything_wrong, Modality="MR")).reason == "wrong_modality"


def test_laterals_by_parameter() -> None:
    assert judge(chest(ViewPosition="LL"), views=("PA", "AP", "LL")).reason is None


@pytest.mark.parametrize("written", ["TÓRAX ".encode("latin-1"), "TÓRAX".encode(), "Tórax".encode(), "胸部".encode()])
def test_names_of_the_chest_beyond_ascii(written: bytes) -> None:
    assert judge(chest(BodyPartExamined="X" * len(written)).replace(b"X" * len(written), written)).reason is None


def test_a_hospitals_own_name_of_the_chest_by_parameter() -> None:
    content = chest(BodyPartExamined="BUSTE 2")
    assert judge(content).reason == "wrong_body_part"
    assert judge(content, body_parts=("büsté",)).reason is None


def test_the_view_in_labels_csv_counts_where_the_header_is_silent() -> None:
    table = Table(records={"folder/file": Record(2, (), "", "ll", "", "")})
    assert judge(chest(ViewPosition=None), table).reason == "wrong_view"
    assert judge(chest(ViewPosition="PA"), table).reason is None


def test_details_contain_no_free_text_from_the_header() -> None:
    for keyword in ("Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation"):
        note = judge(chest(**{keyword: "OTTILIE"}))
        assert note.reason and "OTTILIE" not in (note.detail or "")


def test_damaged_files_are_judged_and_never_raise() -> None:
    rng = np.random.default_rng(0)
    content = np.frombuffer(chest(WindowCenter="100", WindowWidth="90"), np.uint8)
    header = content.size - 60 * 48
    reasons = set()
    for _ in range(400):
        damaged = content.copy()
        damaged[rng.integers(128, header, 3)] ^= (1 << rng.integers(0, 8, 3)).astype(np.uint8)
        reasons.add(judge(damaged.tobytes()).reason)
    assert {None, "unreadable"} <= reasons
