"""Lookup tables, windows and ranges that fit their header badly."""

from typing import Any

import numpy as np
import pydicom.pixels
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.common.dicom.refusal import Refused
from tests.common.dicom.phantoms import Array, dataset, lookup_table, picture
from tests.common.dicom.test_dicom_file import assert_same, clipped, render

PIXELS = picture(bits=12)
CURVE = np.round(4095 * np.linspace(0, 1, 4096) ** 0.7).astype("u2")
WINDOW = {"WindowCenter": "1800", "WindowWidth": "1500"}


def table(descriptor: list[int], data: bytes | list[int] | None, vr: str = "OW") -> Dataset:
    """Returns an item with any descriptor and data."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    if data is not None:
        item.add_new("LUTData", vr, data)
    return item


def packed(entries: Array, order: str = "<") -> bytes:
    """Packs entries of 8 bits two to a word, the first in the lower byte."""
    padded = np.append(entries, np.zeros(entries.size % 2)).astype("u1").reshape(-1, 2)
    return padded[:, :: 1 if order == "<" else -1].tobytes()


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda syntax: syntax.name[:12]
)
@pytest.mark.parametrize("form", ["OW", "US", "OW packed", "US packed"])
@pytest.mark.parametrize("size", [1, 2, 255, 256, 4096])
def test_lut_data_of_any_form(syntax: UID, form: str, size: int) -> None:
    entries = np.round(255 * np.linspace(1, 0, size) ** 0.7)
    order = "<" if syntax.is_little_endian else ">"
    data = packed(entries, order) if "packed" in form and size > 1 else entries.astype(f"{order}u2").tobytes()
    value: Any = np.frombuffer(data, f"{order}u2").tolist() if "US" in form else data
    made = dataset(PIXELS, 12, syntax, VOILUTSequence=[table([size, 1000, 8], value, form[:2])])
    shown = entries[np.clip(PIXELS.astype(int) - 1000, 0, size - 1)]
    if size == 1:
        with pytest.raises(Refused, match="are the same"):
            render(made)
    else:
        assert_same(render(made), clipped(shown))


def test_a_lut_of_65536_entries() -> None:
    entries = np.arange(65536) // 2
    made = dataset(picture(bits=16), VOILUTSequence=[table([0, 0, 16], entries.astype("u2").tobytes())])
    assert_same(render(made), clipped(picture(bits=16) // 2))


@pytest.mark.parametrize("bits", [12, 16])
def test_a_word_of_padding_behind_lut_data_is_ignored_as_pydicom_does(bits: int) -> None:
    made = dataset(PIXELS, 12, VOILUTSequence=[table([4095, 0, bits], CURVE.tobytes())])
    assert_same(render(made), clipped(CURVE[np.minimum(PIXELS, 4094)]))
    assert np.array_equal(pydicom.pixels.apply_voi_lut(PIXELS, made), CURVE[np.minimum(PIXELS, 4094)])


@pytest.mark.parametrize(
    "item",
    [
        table([4096, 0, 12], CURVE[:-1].tobytes()),
        table([4096, 0, 12], CURVE[:2048].tobytes()),  # as many bytes as entries
        table([4096, 0, 16], CURVE[:100].tobytes()),
        table([4000, 0, 12], CURVE.tobytes()),  # pydicom ignores the rest, dcmtk does not
        table([4096, 0, 8], packed(CURVE[:4000] // 16)),
        table([1000, 0, 8], packed(CURVE // 16)),
        table([4096, 0, 0], CURVE.tobytes()),
        table([4096, 0], CURVE.tobytes()),
        table([], CURVE.tobytes()),
    ],
    ids=[
        "a word short",
        "half",
        "a hundred entries",
        "96 words more",
        "bytes too short",
        "bytes too long",
        "no bits",
        "two numbers",
        "no descriptor",
    ],
)
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_lut_that_does_not_fit_is_refused_unless_a_window_says_the_same(item: Dataset, sequence: str) -> None:
    with pytest.raises(Refused, match="lookup table"):
        render(dataset(PIXELS, 12, **{sequence: [item]}))
    both = dataset(PIXELS, 12, **{sequence: [item]}, **WINDOW)
    if sequence == "VOILUTSequence":
        assert_same(render(both), render(dataset(PIXELS, 12, **WINDOW)))
    else:
        with pytest.raises(Refused, match="lookup table"):
            render(both)


@pytest.mark.parametrize("empty", [Dataset(), table([4096, 0, 12], None), table([4096, 0, 12], b"")], ids=["item", "no data", "empty data"])
def test_a_lut_without_data_hides_nothing(empty: Dataset) -> None:
    usable = lookup_table(0, CURVE, 12)
    assert_same(render(dataset(PIXELS, 12, VOILUTSequence=[empty], **WINDOW)), render(dataset(PIXELS, 12, **WINDOW)))
    assert_same(render(dataset(PIXELS, 12, VOILUTSequence=[empty, usable])), render(dataset(PIXELS, 12, VOILUTSequence=[usable])))
    assert_same(render(dataset(PIXELS, 12, VOILUTSequence=[empty])), clipped(PIXELS))
    assert_same(render(dataset(PIXELS, 12, ModalityLUTSequence=[empty], **WINDOW)), render(dataset(PIXELS, 12, **WINDOW)))


INVERTED = clipped(4095.0 - PIXELS)
INVERTED_CURVE = clipped(4095.0 - CURVE[PIXELS])


@pytest.mark.parametrize("declared", [12, 13, 14, 16])
def test_a_declared_range_wider_than_the_data_leaves_the_contrast(declared: int) -> None:
    monochrome1 = {"PhotometricInterpretation": "MONOCHROME1"}
    assert_same(render(dataset(PIXELS, declared, **monochrome1)), INVERTED)
    assert_same(render(dataset(PIXELS, declared, RescaleSlope="-2", RescaleIntercept="70")), INVERTED)
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        item = lookup_table(0, CURVE, declared)
        assert_same(render(dataset(PIXELS, 12, **{sequence: [item]}, **monochrome1)), INVERTED_CURVE)
        assert_same(render(dataset(PIXELS, 12, **{sequence: [item]})), clipped(CURVE[PIXELS]))


def test_the_same_numbers_give_the_same_inverse_whatever_lies_above_them() -> None:
    """Padding does not count as a number in use."""
    words = PIXELS.copy()
    words[:, :9] = 65535
    made = dataset(words, 16, PhotometricInterpretation="MONOCHROME1")
    made.add_new("PixelPaddingValue", "US", 65535)
    assert_same(render(made)[:, 9:], clipped(4095.0 - PIXELS[:, 9:]))


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_windows_narrower_than_1(function: str) -> None:
    made = dataset(PIXELS, 12, RescaleSlope="0.0002", RescaleIntercept="0", WindowCenter="0.4", WindowWidth="0.5", VOILUTFunction=function)
    x = (PIXELS * 0.0002 - 0.4) / 0.5
    assert_same(render(made), clipped(np.clip(x + 0.5, 0, 1) if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * x))))


@pytest.mark.parametrize(
    ("elements", "detail"),
    [
        ({"WindowCenter": "0.4", "WindowWidth": "0.5"}, "less than 1"),
        ({"WindowCenter": "0.4", "WindowWidth": "-5", "VOILUTFunction": "SIGMOID"}, "not positive"),
        ({"RescaleSlope": "1e999", "RescaleIntercept": "0"}, "RescaleSlope is not a number"),
    ],
)
def test_windows_and_rescales_that_mean_nothing(elements: dict[str, str], detail: str) -> None:
    with pytest.raises(Refused, match=detail):
        render(dataset(PIXELS, 12, **elements))
