"""Elements cut out of a data set are those that pydicom reads, or none."""

from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.common.dicom.elements import Element, Elements, integer, is_empty, pair, read_plain, text
from tests.common.dicom.mutations import mutated, whole_files
from tests.common.dicom.phantoms import dataset, picture, to_bytes


def body_of(content: bytes) -> tuple[int, bool]:
    """Returns the offset of the data set in a file, and whether its VRs are implicit."""
    syntax = dcmread(BytesIO(content), stop_before_pixels=True).file_meta.TransferSyntaxUID
    return 144 + int.from_bytes(content[140:144], "little"), syntax == ImplicitVRLittleEndian


def parsed(content: bytes, start: int, implicit: bool) -> Dataset:
    stream = BytesIO(content)
    stream.seek(start)
    return read_dataset(stream, implicit, True)


def raw_elements(made: Dataset) -> dict[int, tuple[str | None, bytes]]:
    found = {tag: made.get_item(tag) for tag in made.keys()}  # noqa: SIM118 - iterating over elements would convert them
    assert all(isinstance(element, RawDataElement) for element in found.values())
    return {int(tag): (element.VR, element.value or b"") for tag, element in found.items()}


def plain_files() -> list[bytes]:
    """Returns the files of `whole_files` in plain little endian with file meta and without sequences."""
    whole = [content for content in whole_files() if content[128:132] == b"DICM" and b"VOILUT" not in content]
    skipped = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    return [content for content in whole if not any(uid.encode() + b"\0" in content[:400] for uid in skipped)]


def test_plain_files_are_read_as_pydicom_reads_them() -> None:
    files = plain_files()
    read = 0
    for content in files:
        start, implicit = body_of(content)
        found = read_plain(content, start, implicit)
        if found is not None:
            assert {tag: tuple(element) for tag, element in found.items()} == raw_elements(parsed(content, start, implicit))
            read += 1
    assert read > len(files) / 2


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_as_pydicom_reads_them_or_not_at_all() -> None:
    files = [(content, *body_of(content)) for content in plain_files()]
    read = 0
    for number in range(1500):
        content, start, implicit = files[number % len(files)]
        spoilt = content[:start] + mutated([content[start:]], number)
        found = read_plain(spoilt, start, implicit)
        if found is not None:
            assert {tag: tuple(element) for tag, element in found.items()} == raw_elements(parsed(spoilt, start, implicit))
            read += 1
    assert 100 < read < 1400, "the mutations are too weak or too strong to show anything"


@pytest.mark.parametrize(
    "elements",
    [
        {"SpecificCharacterSet": "ISO 2022 IR 87"},
        {"PatientComments": None, "ViewCodeSequence": Sequence([Dataset()])},
    ],
    ids=["a rare character set", "a sequence of undefined length"],
)
def test_what_is_not_plain_is_left_to_pydicom(elements: dict[str, Any]) -> None:
    made = dataset(picture(), **elements)
    if "ViewCodeSequence" in elements:
        made["ViewCodeSequence"].is_undefined_length = True
    content = to_bytes(made)
    assert read_plain(content, *body_of(content)) is None


@pytest.mark.parametrize(
    ("syntax", "plain"), [(ExplicitVRLittleEndian, True), (ExplicitVRLittleEndian, False), (ExplicitVRBigEndian, False)]
)
def test_numbers_have_the_sign_of_their_vr(syntax: UID, plain: bool) -> None:
    content = to_bytes(dataset(picture(), syntax=syntax, PixelIntensityRelationshipSign=-1, Rows=60_000))
    start, implicit = body_of(content)
    stream = BytesIO(content)
    stream.seek(start)
    made = read_dataset(stream, implicit, syntax == ExplicitVRLittleEndian)
    elements = Elements(read_plain(content, start, implicit), lambda: made) if plain else Elements.of(made)
    assert integer(elements, "PixelIntensityRelationshipSign", 0) == -1
    assert integer(elements, "Rows", 0) == 60_000
    assert integer(elements, "NumberOfFrames", 7) == 7
    assert is_empty(elements, "PixelPaddingValue")
    assert not is_empty(elements, "Rows")
    assert text(elements, "Modality") == "DX"


@pytest.mark.parametrize("value", [b"0.2\\0.1", b" 0.2\\ 0.1 ", b"0.2\\0.1\0"])
def test_pairs_are_read_whatever_pads_them(value: bytes) -> None:
    assert pair(Elements({0x00280030: Element("DS", value)}, Dataset), "PixelSpacing") == (0.2, 0.1)
