"""How numbers lie in words: combinations that the standard allows, and the usual contradictions, in every transfer syntax."""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import imagecodecs
import jpeg_ls
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from components.common.dicom import dicom_file
from components.common.dicom.refusal import Refused
from components.common.dicom.render import render
from tests.common.dicom.phantoms import LOSSLESS, Array, dataset, encapsulated, picture, to_bytes

WHOLE_WORDS = tuple(syntax for syntax in LOSSLESS if not syntax.is_encapsulated or syntax == RLELossless)
"""Transfer syntaxes that keep all bits of a word, used or not."""
SIDE = 64


class Case(NamedTuple):
    """A file and the numbers in it."""

    made: FileDataset
    truth: Array


def numbers_of(content: bytes) -> Array:
    """Decodes a file, has it rendered so that its bits are checked, and returns the numbers (H, W)."""
    decoded = dicom_file.prepare(*dicom_file.open_file(content))()
    render(decoded, SIDE, 8, 99.0)
    return decoded.grayscale.word.numbers(decoded.words.astype(np.intp))


def truth_of(bits: int, signed: bool) -> Array:
    """Returns numbers (H, W) that use all of `bits`."""
    return picture(60, SIDE, bits).astype(int) - (2 ** (bits - 1) if signed else 0)


def native(words: Array, syntax: UID, bits: int, high: int | None = None, signed: bool = False) -> FileDataset:
    """Writes whole words (H, W) of 8 or 16 bits."""
    made = dataset(words, syntax=syntax)
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1 if high is None else high, int(signed)
    return made


def samples(numbers: Array, syntax: UID, precision: int, signed: bool = False, *, allocated: int = 16, **elements: Any) -> FileDataset:
    """Writes numbers (H, W) as samples of a codestream of its own precision and sign."""
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if precision <= 8 else 2}")
    patterns = numbers & (1 << precision) - 1
    values = (np.where(patterns >> (precision - 1), patterns - (1 << precision), patterns) if signed else patterns).astype(dtype)
    return encapsulated(dataset(np.zeros(numbers.shape, f"u{allocated // 8}"), **elements), STREAMS[syntax](values, precision), syntax)


def jpeg_ls_stream(values: Array, precision: int) -> bytes:
    shape = {"rows": values.shape[0], "columns": values.shape[1], "samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2"}
    depth = {"bits_stored": precision, "bits_allocated": 8 * values.itemsize, "pixel_representation": 0}
    return bytes(jpeg_ls.encode_pixel_data(values.tobytes(), **shape, **depth))


STREAMS: dict[UID, Callable[[Array, int], bytes]] = {
    JPEG2000Lossless: lambda values, precision: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", bitspersample=precision),
    HTJ2KLossless: lambda values, precision: imagecodecs.htj2k_encode(values, reversible=True),
    JPEGLosslessSV1: lambda values, precision: imagecodecs.jpeg8_encode(values, lossless=True, predictor=1, bitspersample=precision),
    JPEGLSLossless: lambda values, precision: jpeg_ls_stream(values, precision),
}
"""Encoders of samples (H, W) of a precision. That of HTJ2K writes 8 or 16 bits always."""


DEPTHS = ((8, 8), (8, 7), (16, 8), (16, 9), (16, 12), (16, 15), (16, 16))
"""Bits Allocated and Bits Stored."""
UNUSED = ("zero", "sign", "overlay", "declared overlay", "noise")
"""Contents of the bits that do not belong to the number."""
LAYOUTS = [
    (allocated, bits, shift, unused)
    for allocated, bits in DEPTHS
    for shift in sorted({0, (allocated - bits) // 2, allocated - bits})
    for unused in (UNUSED if bits < allocated else UNUSED[:1])
]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "bits", "shift", "unused"), LAYOUTS)
@pytest.mark.parametrize("syntax", WHOLE_WORDS, ids=lambda syntax: syntax.name[:20])
def test_whole_words(syntax: UID, allocated: int, bits: int, shift: int, unused: str, signed: bool) -> None:
    truth = truth_of(bits, signed)
    words = truth << shift & (2**bits - 1) << shift | UNUSED_BITS[unused](truth << shift, allocated) & ~((2**bits - 1) << shift)
    made = native((words & 2**allocated - 1).astype(f"u{allocated // 8}"), syntax, bits, bits + shift - 1, signed)
    if unused == "declared overlay":
        made.add_new(0x60000100, "US", allocated)
        made.add_new(0x60000102, "US", allocated - 1)
    content = to_bytes(made)
    assert np.array_equal(numbers_of(content), truth)
    if not shift:
        assert np.array_equal(dcmread(BytesIO(content)).pixel_array, truth)


UNUSED_BITS: dict[str, Callable[[Array, int], Array]] = {
    "zero": lambda shifted, allocated: np.zeros_like(shifted),
    "sign": lambda shifted, allocated: shifted,
    "overlay": lambda shifted, allocated: rectangle(shifted.shape) << (allocated - 1),
    "declared overlay": lambda shifted, allocated: noise(shifted.shape, 1) << (allocated - 1),
    "noise": lambda shifted, allocated: noise(shifted.shape, allocated),
}


def rectangle(shape: tuple[int, ...]) -> Array:
    mask = np.zeros(shape, int)
    mask[20:40, 30:50] = 1
    return mask


def noise(shape: tuple[int, ...], bits: int) -> Array:
    return np.random.default_rng(0).integers(0, 2**bits, shape)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "bits"), DEPTHS)
@pytest.mark.parametrize("syntax", STREAMS, ids=lambda syntax: syntax.name[:20])
def test_codestreams_of_the_precision_that_the_standard_asks_for(syntax: UID, allocated: int, bits: int, signed: bool) -> None:
    truth = truth_of(bits, signed)
    signed_stream = signed and syntax in (JPEG2000Lossless, HTJ2KLossless)
    made = samples(
        truth, syntax, bits, signed_stream, allocated=allocated, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed)
    )
    assert np.array_equal(numbers_of(to_bytes(made)), truth)


def contradictions() -> Iterator[tuple[str, Callable[[], Case], bool]]:
    """Yields files whose header and pixels disagree, by name, and whether the numbers can be known."""
    around_zero = truth_of(12, signed=True)
    positive = truth_of(12, signed=False)
    below_zero = np.where(rectangle(positive.shape), -50 - positive % 8, 1000 + positive // 4)

    def stream(
        numbers: Array, syntax: UID, precision: int, stored: int, sign: int, *, signed: bool = False, high: int = 0
    ) -> Callable[[], Case]:
        elements = {"BitsStored": stored, "HighBit": (high or stored) - 1, "PixelRepresentation": sign}
        return lambda: Case(samples(numbers, syntax, precision, signed, **elements), numbers)

    for syntax in STREAMS:
        name = syntax.name.split(" (")[0]
        narrow = syntax != HTJ2KLossless
        yield f"{name}: precision above Bits Stored", stream(positive, syntax, 14, 12, 0), True
        yield f"{name}: precision above Bits Stored, signed", stream(around_zero, syntax, 14, 12, 1), True
        yield f"{name}: more bits in use than Bits Stored", stream(positive, syntax, 12, 10, 0), False
        yield f"{name}: more bits in use than Bits Stored, signed", stream(around_zero, syntax, 12, 10, 1), False
        yield (
            f"{name}: words shifted up to High Bit",
            lambda syntax=syntax: Case(samples(positive << 4, syntax, 16, BitsStored=12, HighBit=15), positive),
            True,
        )
        yield f"{name}: numbers not shifted up to High Bit", stream(positive, syntax, 16, 12, 0, high=16), False
        if narrow:
            yield f"{name}: precision below Bits Stored", stream(positive, syntax, 12, 16, 0), True
            yield f"{name}: precision below Bits Stored, signed", stream(around_zero, syntax, 12, 16, 1), True
            yield f"{name}: precision below Bits Stored, signed but all positive", stream(positive, syntax, 12, 16, 1), False
            yield f"{name}: too narrow for High Bit", stream(positive, syntax, 12, 12, 0, high=16), True
    for syntax in (JPEG2000Lossless, HTJ2KLossless):
        name = syntax.name.split(" (")[0]
        yield f"{name}: signed samples, unsigned header", stream(positive, syntax, 12 if "HT" not in name else 16, 12, 0, signed=True), True
        yield f"{name}: negative samples, unsigned header", stream(around_zero, syntax, 12, 12, 0, signed=True), False
        yield f"{name}: unsigned samples, signed header", stream(around_zero, syntax, 12, 12, 1), True
    yield (
        "JPEG 2000: negative samples of 16 bits, unsigned header",
        stream(truth_of(16, True), JPEG2000Lossless, 16, 16, 0, signed=True),
        False,
    )
    yield "JPEG 2000: patterns of 16 bits as signed samples", stream(truth_of(16, False), JPEG2000Lossless, 16, 16, 0, signed=True), True
    for syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless):
        name = syntax.name

        def whole(numbers: Array, words: Array, syntax: UID = syntax, high: int = 11, signed: bool = False) -> Callable[[], Case]:
            return lambda: Case(native(words.astype("u2"), syntax, 12, high, signed), numbers)

        yield f"{name}: more bits in use than Bits Stored", whole(positive, truth_of(14, False)), False
        yield f"{name}: more bits in use than Bits Stored, signed", whole(positive, truth_of(14, True) & 0xFFFF, signed=True), False
        yield f"{name}: negative numbers, unsigned header", whole(around_zero, around_zero & 0xFFFF), False
        yield f"{name}: numbers not shifted up to High Bit", whole(positive, positive, high=15), False
        yield f"{name}: signed numbers not shifted", whole(around_zero, around_zero & 0xFFFF, high=15, signed=True), False
        yield f"{name}: a background below zero, unsigned header", whole(below_zero, below_zero & 0xFFFF), False
        yield f"{name}: numbers shifted beyond High Bit", whole(positive, positive << 4), False


@pytest.mark.parametrize(("case", "known"), [pytest.param(case, known, id=name) for name, case, known in contradictions()])
def test_contradictions_are_read_right_or_refused(case: Callable[[], Case], known: bool) -> None:
    made, truth = case()
    content = to_bytes(made)
    if known:
        assert np.array_equal(numbers_of(content), truth)
    else:
        with pytest.raises(Refused, match="fit"):
            numbers_of(content)


def test_jpeg_baseline_in_words_of_16_bits() -> None:
    truth = truth_of(8, signed=False)
    made = encapsulated(dataset(truth.astype("u2"), 8), imagecodecs.jpeg8_encode(truth.astype("u1"), 98), JPEGBaseline8Bit)
    assert np.abs(numbers_of(to_bytes(made)) - truth).max() < 12


def test_a_codestream_wider_than_its_words_is_refused() -> None:
    made = samples(truth_of(12, signed=False), JPEG2000Lossless, 12, allocated=8, BitsStored=8, HighBit=7)
    with pytest.raises(Refused, match="12 bits in 8"):
        numbers_of(to_bytes(made))


def padded(words: Array, bits: int, value: int, limit: int | None = None, vr: str = "US", **elements: Any) -> FileDataset:
    made = dataset(words, bits, **elements)
    made.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        made.add_new("PixelPaddingRangeLimit", vr, limit)
    return made


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("signed", "value", "limit", "vr", "masked"),
    [
        (False, 4095, None, "US", (4095, 4095)),
        (False, 4095, 4090, "US", (4090, 4095)),
        (False, 0, None, "SS", (0, 0)),
        (False, 65535, None, "US", None),
        (False, 63536, None, "US", None),  # -2000
        (False, -2000, None, "SS", None),
        (False, -32768, None, "SS", None),
        (False, 4090, 65535, "US", (4090, 4095)),
        (False, -10, 20, "SS", (0, 20)),
        (True, -2048, None, "SS", (-2048, -2048)),
        (True, 2048, None, "US", (-2048, -2048)),  # the same 12 bits, not sign extended
        (True, 63488, None, "US", (-2048, -2048)),  # sign extended
        (True, -2048, -2040, "SS", (-2048, -2040)),
        (True, 2048, 2056, "US", (-2048, -2040)),
        (True, -32768, None, "SS", None),
        (True, 32767, None, "SS", None),
        (True, -32768, -2040, "SS", (-2048, -2040)),
    ],
)
def test_padding_masks_the_numbers_that_it_names_and_no_others(
    signed: bool, value: int, limit: int | None, vr: str, masked: tuple[int, int] | None, photometric: str
) -> None:
    truth = truth_of(12, signed)
    truth[:6] = truth.min()
    truth[-6:] = truth.max()
    made = padded(truth.astype("i2" if signed else "u2"), 12, value, limit, vr, PhotometricInterpretation=photometric)
    image = render(dicom_file.prepare(*dicom_file.open_file(to_bytes(made)))(), SIDE, 8, 99.0).pixels
    kept = np.full(truth.shape, True) if masked is None else (truth < masked[0]) | (truth > masked[1])
    assert masked is None or not kept.all()
    low, high = (min(0, truth[kept].min()), max(0, truth[kept].max())) if signed else (0, 4095)
    brightness = high - truth if photometric == "MONOCHROME1" else truth - low
    upper = np.percentile(brightness[kept], 99)
    assert np.array_equal(image, np.where(kept, np.round(np.clip(brightness, 0, upper) / upper * 255), 0))


@pytest.mark.parametrize(("value", "vr", "signed"), [(63536, "US", False), (-2000, "SS", True), (63536, "US", True)])
def test_padding_beyond_bits_stored_is_a_word_of_its_own(value: int, vr: str, signed: bool) -> None:
    """The 12 lowest bits of the padding are those of 2096, which are an image elsewhere."""
    truth = truth_of(11 if signed else 12, signed=False)
    truth[30:34, 10:20] = 2000 if signed else 2096
    words = truth.astype("u2")
    words[:, :9] = 63536
    image = render(
        dicom_file.prepare(*dicom_file.open_file(to_bytes(padded(words, 12, value, vr=vr, PixelRepresentation=int(signed)))))(),
        SIDE,
        8,
        99.0,
    )
    assert (image.pixels[:, :9] == 0).all() and (image.pixels[30:34, 10:20] > 100).all()


def test_nothing_but_padding_is_blank_whatever_the_codestream_says() -> None:
    made = samples(np.full((60, SIDE), 7), JPEG2000Lossless, 12, BitsStored=16, HighBit=15, PixelRepresentation=1)
    made.add_new("PixelPaddingValue", "SS", 7)
    with pytest.raises(Refused, match="nothing but padding"):
        numbers_of(to_bytes(made))
