"""Comparison with an independent renderer: dcmtk's dcm2pnm, dcmj2pnm and dcml2pnm."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset

from components.common.dicom import dicom_file
from components.common.dicom.render import render
from tests.common.dicom.phantoms import JPEG, LOSSY, Array, dataset, lookup_table, picture, to_bytes, without_meta

PROGRAMS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm", "dcmcjpeg", "dcmcjpls", "dcmcrle")
pytestmark = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS), reason="dcmtk is not installed (Debian: apt-get install dcmtk)"
)

WINDOW = ("+Wi", "1")
VOI_LUT = ("+Wl", "1")


def ours(content: bytes, size: int) -> Array:
    return render(dicom_file.prepare(*dicom_file.open_file(content))(), size, 8, 99.0).pixels


def theirs(content: bytes, folder: Path, *options: str, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> Array:
    """Renders with dcmtk in 16 bits, then clips to [0, 99th percentile] as in the paper."""
    shown = dcmtk(content, folder, *options, syntax=syntax).astype(float)
    upper = np.percentile(shown, 99)
    return np.round(np.clip(shown, 0, upper) / upper * 255)


def dcmtk(content: bytes, folder: Path, *options: str, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> Array:
    """Renders the file for display with dcmtk: (H, W), uint16."""
    program = "dcmj2pnm" if syntax in JPEG else "dcml2pnm" if syntax == uid.JPEGLSLossless else "dcm2pnm"
    source, target = folder / "image.dcm", folder / "image.png"
    source.write_bytes(content)
    subprocess.run([program, "-q", *options, "+on2", str(source), str(target)], check=True, capture_output=True)
    image: Array = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    return image


def assert_alike(image: Array, expected: Array, levels: int = 1) -> None:
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= levels


def compressed(content: bytes, folder: Path, *command: str) -> bytes:
    """Compresses the file with one of dcmtk's commands."""
    (folder / "plain.dcm").write_bytes(content)
    subprocess.run([*command, str(folder / "plain.dcm"), str(folder / "packed.dcm")], check=True, capture_output=True)
    return (folder / "packed.dcm").read_bytes()


NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian)


def windowed(bits: int, signed: bool, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> FileDataset:
    """Returns a data set with a window that covers 80 % of the range."""
    low = -(2 ** (bits - 1)) if signed else 0
    pixels = picture(bits=bits).astype(int) + low
    stored = pixels.astype(("i" if signed else "u") + ("1" if bits == 8 else "2"))
    return dataset(stored, bits, syntax, WindowCenter=str(low + 2 ** (bits - 1)), WindowWidth=str(0.8 * 2**bits))


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name[:20])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_uncompressed_pixels(syntax: uid.UID, signed: bool, bits: int, tmp_path: Path) -> None:
    content = to_bytes(windowed(bits, signed, syntax))
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW))


COMPRESSORS = {
    uid.RLELossless: ("dcmcrle",),
    uid.JPEGBaseline8Bit: ("dcmcjpeg", "+eb", "+q", "95"),
    uid.JPEGExtended12Bit: ("dcmcjpeg", "+ee", "+q", "95"),
    uid.JPEGLossless: ("dcmcjpeg", "+el", "+sv", "6"),
    uid.JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    uid.JPEGLSLossless: ("dcmcjpls",),
}


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless], ids=lambda syntax: syntax.name[-24:]
)
def test_codestreams_that_dcmtk_packed(syntax: uid.UID, bits: int, signed: bool, tmp_path: Path) -> None:
    content = compressed(to_bytes(windowed(bits, signed)), tmp_path, *COMPRESSORS[syntax])
    assert dicom_file.open_file(content)[1].transfer_syntax == syntax
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW, syntax=syntax))


@pytest.mark.parametrize(("syntax", "bits"), LOSSY.items(), ids=["baseline", "extended"])
def test_lossy_codestreams_that_dcmtk_packed(syntax: uid.UID, bits: int, tmp_path: Path) -> None:
    content = compressed(to_bytes(windowed(bits, signed=False)), tmp_path, *COMPRESSORS[syntax])
    assert dicom_file.open_file(content)[1].transfer_syntax == syntax
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW, syntax=syntax), levels=2)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.HTJ2KLossless], ids=lambda syntax: syntax.name[:12])
def test_wavelets_beside_dcmtks_picture_of_the_same_pixels_uncompressed(syntax: uid.UID, bits: int, signed: bool, tmp_path: Path) -> None:
    packed, plain = to_bytes(windowed(bits, signed, syntax)), to_bytes(windowed(bits, signed))
    assert_alike(ours(packed, 60), theirs(plain, tmp_path, *WINDOW))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("shift", [0, 2, 4])
@pytest.mark.parametrize(
    "command", [(), ("dcmcrle",), ("dcmcjpeg", "+e1", "+tl"), ("dcmcjpls",)], ids=["native", "RLE", "JPEG lossless", "JPEG-LS"]
)
def test_high_bit_and_filled_unused_bits(command: tuple[str, ...], shift: int, signed: bool, tmp_path: Path) -> None:
    made = windowed(12, signed)
    made.HighBit = 11 + shift
    field = 0xFFF << shift
    unused = 0 if command == ("dcmcjpls",) else np.random.default_rng(0).integers(0, 2**16, (made.Rows, made.Columns)) & ~field
    made.PixelData = (made.pixel_array.astype(int) << shift & field | unused).astype("u2").tobytes()
    content = compressed(to_bytes(made), tmp_path, *command) if command else to_bytes(made)
    syntax = uid.UID(dicom_file.open_file(content)[1].transfer_syntax)
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW, syntax=syntax))


def test_no_preamble_and_no_meta(tmp_path: Path) -> None:
    content = without_meta(windowed(12, signed=False))
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW, "-f", "-ti"))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("function", "option"), [("LINEAR", "+Wfl"), ("SIGMOID", "+Wfs")])
def test_windows(photometric: str, function: str, option: str, tmp_path: Path) -> None:
    made = dataset(
        picture(bits=12), 12, PhotometricInterpretation=photometric, RescaleSlope="0.5", RescaleIntercept="-700",
        WindowCenter="300", WindowWidth="900", VOILUTFunction=function,
    )  # fmt: skip
    content = to_bytes(made)
    assert_alike(ours(content, 60), theirs(content, tmp_path, *WINDOW, option))


def test_linear_exact_is_linear_with_a_window_of_one_more_half_a_step_higher(tmp_path: Path) -> None:
    pixels = picture(bits=12)
    exact = to_bytes(dataset(pixels, 12, WindowCenter="1800", WindowWidth="1500", VOILUTFunction="LINEAR_EXACT"))
    linear = to_bytes(dataset(pixels, 12, WindowCenter="1800.5", WindowWidth="1501"))
    assert_alike(ours(exact, 60), theirs(linear, tmp_path, *WINDOW, "+Wfl"))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_nothing_but_the_photometric_interpretation(photometric: str, tmp_path: Path) -> None:
    content = to_bytes(dataset(picture(bits=12), 12, PhotometricInterpretation=photometric))
    assert_alike(ours(content, 60), theirs(content, tmp_path))


def test_presentation_lut_shape_inverse(tmp_path: Path) -> None:
    made = dataset(picture(bits=12), 12, WindowCenter="2000", WindowWidth="3000", PresentationLUTShape="INVERSE")
    assert_alike(ours(to_bytes(made), 60), theirs(to_bytes(made), tmp_path, *WINDOW, "+Piv"))


def test_presentation_lut_shape_inverse_of_monochrome1_inverts_once(tmp_path: Path) -> None:
    elements: dict[str, Any] = {"WindowCenter": "2000", "WindowWidth": "3000", "PhotometricInterpretation": "MONOCHROME1"}
    both = to_bytes(dataset(picture(bits=12), 12, PresentationLUTShape="INVERSE", **elements))
    assert_alike(ours(both, 60), theirs(to_bytes(dataset(picture(bits=12), 12, **elements)), tmp_path, *WINDOW))


CURVE = np.round(1023 * np.linspace(0, 1, 3000) ** 2)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_lut(photometric: str, tmp_path: Path) -> None:
    made = dataset(picture(bits=12), 12, PhotometricInterpretation=photometric, VOILUTSequence=[lookup_table(500, CURVE, 10)])
    assert_alike(ours(to_bytes(made), 60), theirs(to_bytes(made), tmp_path, *VOI_LUT))


@pytest.mark.parametrize("form", ["packed", "numbers"])
def test_voi_lut_data_of_other_forms(form: str, tmp_path: Path) -> None:
    entries = np.round(CURVE / 1023 * 255).astype("u1")
    item = lookup_table(500, entries, 8)
    if form == "packed":
        item.LUTData = entries.tobytes()
    else:
        item.add_new("LUTData", "US", entries.tolist())
    content = to_bytes(dataset(picture(bits=12), 12, VOILUTSequence=[item]))
    assert_alike(ours(content, 60), theirs(content, tmp_path, *VOI_LUT))


def test_voi_lut_of_negative_values(tmp_path: Path) -> None:
    signed = picture(bits=12).astype("i2") - 2048
    content = to_bytes(dataset(signed, 12, VOILUTSequence=[lookup_table(-1500, CURVE, 10)]))
    assert_alike(ours(content, 60), theirs(content, tmp_path, *VOI_LUT))


def test_a_voi_lut_goes_before_a_window(tmp_path: Path) -> None:
    made = dataset(picture(bits=12), 12, VOILUTSequence=[lookup_table(500, CURVE, 10)], WindowCenter="100", WindowWidth="50")
    assert_alike(ours(to_bytes(made), 60), theirs(to_bytes(made), tmp_path, *VOI_LUT))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("then", ["nothing", "window", "voi lut"])
def test_modality_lut(then: str, photometric: str, tmp_path: Path) -> None:
    entries = np.round(4095 * np.linspace(0, 1, 4096) ** 0.5)
    elements: dict[str, Any] = {"ModalityLUTSequence": [lookup_table(0, entries, 12)], "PhotometricInterpretation": photometric}
    if then == "window":
        elements |= {"WindowCenter": "2200", "WindowWidth": "3001"}
    elif then == "voi lut":
        elements |= {"VOILUTSequence": [lookup_table(700, CURVE, 10)]}
    elements["ModalityLUTSequence"][0].ModalityLUTType = "US"
    content = to_bytes(dataset(picture(bits=12), 12, **elements))
    assert_alike(ours(content, 60), theirs(content, tmp_path, *{"window": WINDOW, "voi lut": VOI_LUT}.get(then, ())))


def test_padding_changes_nothing_where_there_is_an_image(tmp_path: Path) -> None:
    """dcmtk shows padding like any other value and we mask it; all other pixels must agree up to the clip."""
    pixels = picture(bits=12)
    pixels[:, :9] = 4000
    made = dataset(pixels, 12, WindowCenter="1500", WindowWidth="2000")
    made.add_new("PixelPaddingValue", "US", 4000)
    shown = dcmtk(to_bytes(made), tmp_path, *WINDOW).astype(float)
    upper = np.percentile(shown[pixels != 4000], 99)
    expected = np.where(pixels == 4000, 0, np.round(np.clip(shown, 0, upper) / upper * 255))
    assert_alike(ours(to_bytes(made), 60), expected)


def test_a_reduced_picture(tmp_path: Path) -> None:
    """The clip is computed before downsampling, so dcmtk's image is downsampled after its clip."""
    pixels = cv2.GaussianBlur(picture(120, 96, 12), (0, 0), 2)
    content = to_bytes(dataset(pixels, 12, WindowCenter="2000", WindowWidth="3000"))
    halves = theirs(content, tmp_path, *WINDOW).reshape(60, 2, 48, 2).mean((1, 3))
    assert_alike(ours(content, 60), halves)
