import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pydicom.pixels
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from components.common.dicom import decoders, dicom_file
from components.common.dicom.refusal import Refused
from components.common.dicom.render import histogram, quantiles, resized_shape
from components.common.dicom.render import render as rendered
from tests.common.dicom.phantoms import JPEG, LOSSLESS, LOSSY, Array, dataset, lookup_table, picture, to_bytes, without_meta

SOURCE_SIZE = 60


def render(made: FileDataset, size: int = SOURCE_SIZE, bits: int = 8, percentile: float = 99.0) -> Array:
    return rendered(dicom_file.prepare(*dicom_file.open_file(to_bytes(made)))(), size, bits, percentile).pixels


def numbers(content: bytes) -> Array:
    """Decodes a file to its stored numbers (H, W)."""
    words, grayscale = dicom_file.prepare(*dicom_file.open_file(content))()
    return grayscale.word.numbers(words.astype(np.intp))


def clipped(brightness: Array, full: int = 255) -> Array:
    """Clips and scales as in the paper, written out."""
    upper = np.percentile(brightness, 99)
    return np.round(np.clip(brightness, 0, upper) / upper * full)


def assert_same(image: Array, expected: Array, tolerance: int = 0) -> None:
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name[:20])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_transfer_syntax_decodes_to_the_stored_values(syntax: UID, bits: int) -> None:
    pixels = picture(61, 47, bits)
    assert np.array_equal(numbers(to_bytes(dataset(pixels, bits, syntax))), pixels)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name[-20:])
@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_survive(syntax: UID, bits: int) -> None:
    pixels = (picture(bits=bits).astype("i4") - 2 ** (bits - 1)).astype("i2")
    assert np.array_equal(numbers(to_bytes(dataset(pixels, bits, syntax))), pixels)


def test_lossy_jpeg_is_close_to_the_stored_values() -> None:
    pixels = np.round(127 + 100 * np.sin(np.mgrid[0:60, 0:48].sum(0) / 15)).astype("u1")
    assert_same(numbers(to_bytes(dataset(pixels, syntax=JPEGBaseline8Bit))), pixels, tolerance=3)


def test_decoders_are_installed() -> None:
    decoders.check_decoders()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dx_for_processing_is_shown_by_the_exposure_between_two_percentiles(sign: int, photometric: str) -> None:
    pixels = 1000 + picture(bits=12) // 8
    made = dataset(pixels, 14, SOPClassUID=DigitalXRayImageStorageForProcessing, PhotometricInterpretation=photometric)
    made.PixelIntensityRelationshipSign = sign
    absorbed = pixels * -float(sign)
    low, high = np.percentile(absorbed, [1, 99])
    assert_same(render(made), np.round(np.clip((absorbed - low) / (high - low), 0, 1) * 255))


def test_the_presentation_intent_goes_before_the_sop_class() -> None:
    made = dataset(picture(), SOPClassUID=DigitalXRayImageStorageForProcessing, PresentationIntentType="FOR PRESENTATION")
    assert_same(render(made), clipped(picture().astype(float)))


def test_dx_for_processing_with_a_window_is_shown_by_the_window() -> None:
    plain = {"WindowCenter": "1800", "WindowWidth": "1500"}
    made = dataset(picture(bits=12), 12, PresentationIntentType="FOR PROCESSING", PixelIntensityRelationshipSign=1, **plain)
    assert_same(render(made), render(dataset(picture(bits=12), 12, **plain)))


def test_plain_8_bit_picture() -> None:
    pixels = picture()
    assert_same(render(dataset(pixels)), clipped(pixels.astype(float)))


@pytest.mark.parametrize("elements", [{}, {"PresentationLUTShape": "INVERSE"}], ids=["alone", "with INVERSE"])
def test_monochrome1_is_inverted_once(elements: dict[str, str]) -> None:
    pixels = picture()
    made = dataset(255 - pixels, PhotometricInterpretation="MONOCHROME1", **elements)
    assert_same(render(made), clipped(pixels.astype(float)))


def test_presentation_lut_shape_inverse_alone_inverts() -> None:
    pixels = picture()
    assert_same(render(dataset(255 - pixels, PresentationLUTShape="INVERSE")), clipped(pixels.astype(float)))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("inverted", [False, True])
def test_windows_follow_the_standard(function: str | None, inverted: bool) -> None:
    pixels, center, width = picture(bits=12), 1800.0, 1500.0
    x = pixels.astype(float)
    if function == "SIGMOID":
        shown = 1 / (1 + np.exp(-4 * (x - center) / width))
    elif function == "LINEAR_EXACT":
        shown = np.where(x <= center - width / 2, 0, np.where(x > center + width / 2, 1, (x - center) / width + 0.5))
    else:
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        shown = np.where(x <= low, 0, np.where(x > high, 1, (x - (center - 0.5)) / (width - 1) + 0.5))
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    made = dataset(pixels, 12, WindowCenter=center, WindowWidth=width, VOILUTFunction=function, PhotometricInterpretation=photometric)
    assert_same(render(made), clipped(1 - shown if inverted else shown))
    by_pydicom = pydicom.pixels.apply_windowing(pixels, made) / 4095
    assert_same(render(made), clipped(1 - by_pydicom if inverted else by_pydicom), tolerance=1)


def test_a_window_of_width_1_is_a_threshold() -> None:
    image = render(dataset(picture(), WindowCenter="128", WindowWidth="1"))
    assert_same(image, np.where(picture() > 127.5, 255, 0))


def test_the_first_of_several_windows_counts() -> None:
    several = render(dataset(picture(), WindowCenter=["100", "30"], WindowWidth=["80", "10"]))
    assert_same(several, render(dataset(picture(), WindowCenter="100", WindowWidth="80")))


@pytest.mark.parametrize("intercept", ["0", "-1024", "500"])
@pytest.mark.parametrize("slope", ["0.125", "2.5"])
def test_rescaling_alone_never_changes_the_picture(slope: str, intercept: str) -> None:
    pixels = picture(bits=12)
    assert_same(render(dataset(pixels, 12, RescaleSlope=slope, RescaleIntercept=intercept)), clipped(pixels.astype(float)))


def test_a_negative_slope_inverts_the_picture() -> None:
    pixels = picture(bits=12)
    assert_same(render(dataset(pixels, 12, RescaleSlope="-1", RescaleIntercept="0")), clipped(4095.0 - pixels))


def test_rescale_comes_before_the_window() -> None:
    pixels = picture(bits=12)
    x = pixels * 0.5 - 1000
    made = dataset(pixels, 12, RescaleSlope="0.5", RescaleIntercept="-1000", WindowCenter="-100", WindowWidth="801")
    assert_same(render(made), clipped(np.clip((x + 100.5) / 800 + 0.5, 0, 1)))


def test_negative_pixels_are_not_cut_off() -> None:
    signed = picture(bits=12).astype("i2") - 2000
    assert_same(render(dataset(signed, 16)), clipped(signed - float(signed.min())))


def test_signed_pixels_that_are_all_positive_keep_their_contrast() -> None:
    pixels = picture(bits=12)
    assert_same(render(dataset(pixels.astype("i2"), 16)), clipped(pixels.astype(float)))


@pytest.mark.parametrize("inverted", [False, True])
def test_voi_lut(inverted: bool) -> None:
    pixels = picture(bits=12)
    entries = np.round(1023 * np.linspace(0, 1, 3000) ** 2).astype("u2")
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    made = dataset(pixels, 12, VOILUTSequence=[lookup_table(500, entries, 10)], PhotometricInterpretation=photometric)
    shown = entries[np.clip(pixels.astype(int) - 500, 0, 2999)].astype(float)
    assert_same(render(made), clipped(1023 - shown if inverted else shown))
    assert np.array_equal(pydicom.pixels.apply_voi_lut(pixels, made), shown)


def test_a_voi_lut_that_starts_below_zero() -> None:
    signed = picture(bits=12).astype("i2") - 2048
    entries = np.linspace(0, 4095, 4096).astype("u2")
    made = dataset(signed, 12, VOILUTSequence=[lookup_table(-2048, entries, 12)])
    assert_same(render(made), clipped(signed + 2048.0))


def test_a_voi_lut_of_bytes_packed_two_to_a_word() -> None:
    pixels = picture()
    item = lookup_table(0, np.arange(128), 8)
    item.LUTDescriptor = [256, 0, 8]
    item.LUTData = (np.arange(256) // 2).astype("u1").tobytes()
    assert_same(render(dataset(pixels, VOILUTSequence=[item])), clipped((pixels // 2).astype(float)))


def test_modality_lut_then_window() -> None:
    pixels = picture()
    entries = np.round(4095 * np.linspace(0, 1, 256) ** 0.5).astype("u2")
    made = dataset(pixels, ModalityLUTSequence=[lookup_table(0, entries, 16)], WindowCenter="2000", WindowWidth="3001")
    values = entries[pixels].astype(float)
    assert np.array_equal(pydicom.pixels.apply_modality_lut(pixels, made), values)
    assert_same(render(made), clipped(np.clip((values - 1999.5) / 3000 + 0.5, 0, 1)))


@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_black_and_excluded_from_the_percentile(signed: bool) -> None:
    pixels = picture(bits=12)
    pixels[:, :10] = 4095
    shift = 2048 if signed else 0
    stored = pixels.astype("i2") - shift if signed else pixels
    made = dataset(stored, 12, WindowCenter=str(2000 - shift), WindowWidth="4001", PhotometricInterpretation="MONOCHROME1")
    made.add_new("PixelPaddingValue", "SS" if signed else "US", 4095 - shift)
    made.add_new("PixelPaddingRangeLimit", "SS" if signed else "US", 4090 - shift)
    shown = 1 - np.clip((pixels - 1999.5) / 4000 + 0.5, 0, 1)
    upper = np.percentile(shown[pixels < 4090], 99)
    expected = np.where(pixels < 4090, np.round(np.clip(shown, 0, upper) / upper * 255), 0)
    assert_same(render(made), expected)


def test_bits_above_bits_stored_are_ignored() -> None:
    pixels = picture(bits=12)
    overlay = (np.arange(pixels.size).reshape(pixels.shape) % 16 << 12).astype("u2")
    assert_same(render(dataset(pixels | overlay, 12)), clipped(pixels.astype(float)))


def test_high_bit_moves_the_stored_bits() -> None:
    pixels = picture(bits=12)
    assert_same(render(dataset(pixels << 4, 12, HighBit=15)), clipped(pixels.astype(float)))


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.7, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_quantile_agrees_with_numpy(seed: int, percentile: float) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.normal(100, 30, 997 + seed)
    pixels = np.round(pixels) / 7
    values, counts = np.unique(pixels, return_counts=True)
    assert quantiles(values, counts, percentile)[0] == np.percentile(pixels, percentile)


@pytest.mark.parametrize("fragments", [[1000], [600, 400], [0]])
@pytest.mark.parametrize("table", [b"", bytes(4), b"\x08\0\0\0", b"\xdc\x05\0\0", bytes(8), bytes(4) + b"\xf4\x01\0\0", bytes(6)])
def test_frames_agree_with_pydicom_for_any_offset_table(table: bytes, fragments: list[int]) -> None:
    items = [table, *(bytes([7]) * size for size in fragments)]
    data = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items)
    try:
        expected = get_frame(data, 0, number_of_frames=1)
    except ValueError:
        with pytest.raises(ValueError):
            decoders._codestream(data)
    else:
        assert decoders._codestream(data) == expected


def test_histogram_is_exact_beyond_float32() -> None:
    image = np.zeros((4200, 4200), np.uint8)
    image[0, :3] = 7
    counts = histogram(image, 8)
    assert counts[0] == 4200 * 4200 - 3 and counts[7] == 3 and counts.sum() == image.size


def test_sixteen_bits() -> None:
    pixels = picture(bits=12)
    image = render(dataset(pixels, 12), bits=16)
    assert image.dtype == np.uint16
    assert_same(image, clipped(pixels.astype(float), 65535))


@pytest.mark.parametrize("bits", [8, 16])
def test_reducing_averages_areas_and_rounds_once(bits: int) -> None:
    pixels = picture(60, 48, 12)
    upper = np.percentile(pixels, 99)
    exact = (np.clip(pixels, 0, upper) / upper).reshape(30, 2, 24, 2).mean((1, 3)) * (2**bits - 1)
    image = render(dataset(pixels, 12), size=30, bits=bits)
    assert image.shape == (30, 24)
    assert np.abs(image - exact).max() < 0.51


@pytest.mark.parametrize(("shape", "size", "expected"), [((60, 48), 30, (30, 24)), ((48, 60), 100, (80, 100)), ((50, 50), 33, (33, 33))])
def test_resizing_keeps_the_aspect(shape: tuple[int, int], size: int, expected: tuple[int, int]) -> None:
    image = render(dataset(picture(*shape)), size=size)
    assert image.shape == expected == resized_shape(*shape, size)
    assert image.max() <= 255


def shown(pixels: Array, size: int, **elements: Any) -> Array:
    parsed, header = dicom_file.open_file(to_bytes(dataset(pixels, **elements)))
    return rendered(dicom_file.prepare(parsed, header)(), size, 8, 99.0, header.pixel_aspect).pixels


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({"PixelSpacing": ["0.2", "0.1"]}, 2),
        ({"ImagerPixelSpacing": ["0.1", "0.2"]}, 0.5),
        ({"NominalScannedPixelSpacing": ["0.3", "0.2"]}, 1.5),
        ({"PixelAspectRatio": ["5", "4"]}, 1.25),
        ({"PixelSpacing": ["0.143", "0.143"], "PixelAspectRatio": ["2", "1"]}, 1),
        ({"PixelSpacing": ["0", "0"], "PixelAspectRatio": ["2", "1"]}, 2),
        ({"PixelSpacing": ["0.1429", "0.143"]}, 1),
        ({"PixelSpacing": "0.2"}, 1),
        ({"PixelAspectRatio": ["-2", "1"]}, 1),
        ({"PixelSpacing": None}, 1),
        ({"PixelSpacing": ["0.2", "0.1"], "SpecificCharacterSet": "ISO_IR 101"}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [200, 64, 500])
def test_pixels_that_are_not_square_become_square(elements: dict[str, Any], aspect: float, size: int) -> None:
    """A disc of anatomy is a disc in the image: its height is its width."""
    y, x = np.mgrid[0:200, 0:160]
    height, width = 200 * aspect, 160
    disc = ((y + 0.5) * aspect - height / 2) ** 2 + (x + 0.5 - width / 2) ** 2 < 40**2
    image = shown(np.where(disc, 200, 20).astype("u1"), size, **elements)
    longer = max(height, width)
    assert image.shape == (round(height * size / longer), round(width * size / longer))
    inside = image > image.mean()
    assert inside.any(1).sum() == pytest.approx(80 * size / longer, abs=2 + 2 * size / longer)
    assert inside.any(0).sum() == pytest.approx(80 * size / longer, abs=2 + 2 * size / longer)


@pytest.mark.parametrize(
    ("elements", "detail"),
    [
        ({"Rows": 61}, "bytes of pixels for 61"),
        ({"Rows": 59}, "bytes of pixels for 59"),
        ({"Rows": 65535, "Columns": 65535}, "bytes of pixels"),
        ({"Rows": None}, "Rows or Columns"),
        ({"NumberOfFrames": 3}, "frames"),
        ({"BitsStored": 9}, "9 bits stored in 8"),
        ({"BitsAllocated": 32}, "8 bits stored in 32"),
        ({"HighBit": 3}, "High Bit"),
        ({"WindowCenter": "100", "WindowWidth": "0"}, "width"),
        ({"WindowCenter": "100", "WindowWidth": "50", "VOILUTFunction": "CUBIC"}, "VOI LUT Function"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "rescale"),
        ({"VOILUTSequence": [lookup_table(0, np.arange(4), 99)]}, "descriptor"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_what_does_not_fit_the_header_is_unreadable(elements: dict[str, Any], detail: str) -> None:
    with pytest.raises(Refused) as refused:
        render(dataset(picture(), **elements))
    assert refused.value.reason == "unreadable" and detail in refused.value.detail


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit], ids=lambda uid: uid.name[:20])
@pytest.mark.parametrize("side", [61, 60_000])
def test_a_codestream_of_another_size_is_not_decoded(syntax: UID, side: int) -> None:
    made = dataset(picture(), syntax=syntax)
    made.Rows = side
    with pytest.raises(Refused) as refused:
        render(made)
    assert refused.value.reason == "unreadable"


CLAIMS = [(4000, syntax) for syntax in JPEG] + [(130, syntax) for syntax in LOSSY]
"""libjpeg repeats the last values of a lossless image, which cannot be told from pixels."""


@pytest.mark.parametrize(("side", "syntax"), CLAIMS)
def test_a_jpeg_codestream_that_claims_more_pixels_than_it_holds_is_refused(side: int, syntax: UID) -> None:
    bits = LOSSY.get(syntax, 12)
    made = dataset(picture(120, 120, bits), bits, syntax, Rows=side, Columns=side)
    made.PixelData = made.PixelData.replace(b"\0\x78\0\x78", side.to_bytes(2, "big") * 2, 1)
    with pytest.raises(Refused, match="too short for"):
        render(made)


@pytest.mark.parametrize("syntax", [uid for uid in LOSSLESS if uid.is_encapsulated or uid.is_deflated], ids=lambda uid: uid.name[:20])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_truncated_files_are_unreadable(syntax: UID, share: float) -> None:
    content = to_bytes(dataset(picture(200, 160), syntax=syntax))
    with pytest.raises(Refused) as refused:
        dicom_file.prepare(*dicom_file.open_file(content[: int(share * len(content))]))()
    assert refused.value.reason == "unreadable"


FILE_META = {
    "plain": lambda meta: struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta,
    "no group length": lambda meta: meta,
    "wrong group length": lambda meta: struct.pack("<HH2sHI", 2, 0, b"UL", 4, 7) + meta,
    "2,000 bytes before the transfer syntax": lambda meta: element(0x0013, b"SH", b"A" * 2000) + meta,
}


def element(number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("kind", FILE_META)
def test_file_meta_of_every_kind_is_read_as_by_pydicom(kind: str, syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_bytes(dataset(picture(bits=12), 12, syntax))
    body = whole[144 + int.from_bytes(whole[140:144], "little") :]
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    content = bytes(128) + b"DICM" + FILE_META[kind](element(0x10, b"UI", uid)) + body
    parsed, header = dicom_file.open_file(content)
    assert np.array_equal(dicom_file.prepare(parsed, header)()[0], picture(bits=12))
    assert header.transfer_syntax == syntax and header.sop_instance_uid == dcmread(io.BytesIO(content)).SOPInstanceUID
    monkeypatch.setattr(dicom_file, "MAX_INFLATED_BYTES", 1000)
    if syntax == DeflatedExplicitVRLittleEndian:
        with pytest.raises(Refused, match="inflates beyond"):
            dicom_file.open_file(content)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_without_file_meta_is_read_by_its_first_element(syntax: UID) -> None:
    whole = to_bytes(dataset(picture(bits=12), 12, syntax))
    parsed, header = dicom_file.open_file(whole[144 + int.from_bytes(whole[140:144], "little") :])
    assert header.transfer_syntax == syntax
    assert np.array_equal(dicom_file.prepare(parsed, header)()[0], picture(bits=12))


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_file, "MAX_INFLATED_BYTES", 1000)
    with pytest.raises(Refused, match="inflates beyond"):
        dicom_file.open_file(to_bytes(dataset(picture(), syntax=DeflatedExplicitVRLittleEndian)))


@pytest.mark.parametrize("beyond", [0, 1, 100])
def test_data_may_inflate_to_just_beyond_a_step(beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bits of a run are 258 bytes, which zlib holds back if the step has no room for them."""
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = stream.compress(bytes(20_000)) + stream.flush()
    monkeypatch.setattr(dicom_file, "INFLATED_STEP", 20_000 - beyond)
    assert dicom_file._inflate(deflated) == bytes(20_000)


OPEN_SEQUENCE = struct.pack("<HH", 0x0040, 0x0275) + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("extra", "detail"),
    [
        (OPEN_SEQUENCE * 20_000, "the header cannot be parsed"),
        (b"\x29\0\x01\x10OB\0\0\xfe\xff\xff\xff", "truncated"),
        (b"\x29\0\x01\x10UN\0\0\xff\xff\xff\xff", "the header cannot be parsed"),
        (b"\x28\0\x10\x30SQ\0\0\xfe\xff\xff\xff", "truncated"),
    ],
    ids=["nested sequences", "private element of 4 GB", "unknown element without an end", "VOI LUT of 4 GB"],
)
def test_elements_that_claim_any_size_cost_no_memory(extra: bytes, detail: str) -> None:
    content = to_bytes(dataset(picture()))
    at = content.index(b"\x28\0\x02\0US")
    tracemalloc.start()
    with pytest.raises(Refused, match=detail):
        dicom_file.open_file(content[:at] + extra + content[at:])
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_files_without_preamble_and_meta() -> None:
    made = dataset(picture(bits=12), 12)
    header = dicom_file.open_file(without_meta(made))[1]
    assert header.transfer_syntax == ImplicitVRLittleEndian and header.patient_id == made.PatientID
    assert np.array_equal(numbers(without_meta(made)), picture(bits=12))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("filler", [0, 255])
def test_padding_behind_the_pixels_is_ignored(bits: int, filler: int) -> None:
    made = dataset(picture(bits=bits), bits)
    row = 48 * made.BitsAllocated // 8
    for excess in (2, row - 2, row, 3 * row, 100 * row):
        made.PixelData = dataset(picture(bits=bits), bits).PixelData + bytes([filler]) * excess
        assert_same(render(made), clipped(picture(bits=bits).astype(float)))


def test_missing_optional_pixel_attributes_have_their_usual_values() -> None:
    made = dataset(picture(), PhotometricInterpretation=None, PixelRepresentation=None, BitsStored=None, HighBit=None, SamplesPerPixel=None)
    assert_same(render(made), clipped(picture().astype(float)))
