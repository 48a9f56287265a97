"""Small DICOM files written with pydicom alone."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

Array = npt.NDArray[Any]

IDENTIFIERS = {
    "PatientName": "Quartermaine^Ottilie",
    "PatientID": "MRN55501234",
    "PatientBirthDate": "19570318",
    "AccessionNumber": "ACC99887766",
    "InstitutionName": "Saint Elsewhere Infirmary",
    "ReferringPhysicianName": "Zimmerman^Zebulon",
    "StudyDate": "20240719",
    "StudyID": "STUDY8080",
}
"""Identifying header values, which must not appear in any output."""


LOSSY = {JPEGBaseline8Bit: 8, JPEGExtended12Bit: 12}
"""Bits per sample by transfer syntax."""
SYNTAXES = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, *LOSSY,
    JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless,
)  # fmt: skip
"""All transfer syntaxes that are decoded."""
LOSSLESS = tuple(syntax for syntax in SYNTAXES if syntax not in LOSSY)
JPEG = (*LOSSY, JPEGLossless, JPEGLosslessSV1)
"""Transfer syntaxes of ISO 10918."""
ENCODERS: dict[UID, Callable[[Array, int], bytes]] = {
    HTJ2KLossless: lambda pixels, bits: imagecodecs.htj2k_encode(pixels, reversible=True),
    JPEGExtended12Bit: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, 95, bitspersample=12),
    JPEGLossless: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=6, bitspersample=bits),
    JPEGLosslessSV1: lambda pixels, bits: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits),
}
"""Encoders that pydicom lacks: from bit patterns and Bits Stored to a codestream."""


def picture(height: int = 60, width: int = 48, bits: int = 8, seed: int = 0) -> Array:
    """Returns a smooth picture with some noise that spans the full range of `bits`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.sin(y / 9 + seed) + np.cos(x / 7) + rng.normal(0, 0.2, (height, width))
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.round(scaled * (2**bits - 1)).astype("u1" if bits <= 8 else "u2")


def dataset(pixels: Array, bits: int | None = None, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> FileDataset:
    """Returns a chest radiograph. `elements` replaces or adds attributes by keyword; None removes one."""
    made = FileDataset(
        "", Dataset(), b"\0" * 128, FileMetaDataset(), is_implicit_VR=syntax.is_implicit_VR, is_little_endian=syntax.is_little_endian
    )
    uid = generate_uid(prefix="2.25.")
    attributes: dict[str, Any] = {
        **IDENTIFIERS,
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": uid,
        "StudyInstanceUID": generate_uid(prefix="2.25."),
        "SeriesInstanceUID": generate_uid(prefix="2.25."),
        "Modality": "DX",
        "Manufacturer": "Röntgen & Söhne",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientSex": "F",
        "PatientAge": "057Y",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits or 8 * pixels.itemsize,
        "HighBit": (bits or 8 * pixels.itemsize) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **elements,
    }
    for keyword, value in attributes.items():
        if value is not None:
            setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", DigitalXRayImageStorageForPresentation)
    made.file_meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", uid)
    made.file_meta.TransferSyntaxUID = syntax
    _set_pixels(made, pixels, syntax)
    return made


def _set_pixels(made: FileDataset, pixels: Array, syntax: UID) -> None:
    if syntax == JPEGBaseline8Bit:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        made.PixelData = encapsulate([buffer.getvalue()])
    elif syntax in ENCODERS:
        made.PixelData = encapsulate([ENCODERS[syntax](pixels.view(f"u{pixels.itemsize}") & (2**made.BitsStored - 1), made.BitsStored)])
    elif syntax == JPEGLSLossless and made.PixelRepresentation:
        made.PixelData = encapsulate([imagecodecs.jpegls_encode(pixels.view(f"u{pixels.itemsize}") & (2**made.BitsStored - 1))])
    elif syntax.is_encapsulated:
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.PixelData = pixels.tobytes()
        made.compress(syntax, generate_instance_uid=False)
    else:
        order = pixels.dtype.newbyteorder("<" if syntax.is_little_endian else ">")
        raw = pixels.astype(order).tobytes()
        made.PixelData = raw + b"\0" * (len(raw) % 2)
    made["PixelData"].VR = "OW" if pixels.itemsize > 1 and not syntax.is_encapsulated else "OB"


def encapsulated(made: FileDataset, stream: bytes, syntax: UID) -> FileDataset:
    """Replaces the pixels of a data set by a codestream."""
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([stream])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


def to_bytes(made: FileDataset) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def without_meta(made: FileDataset) -> bytes:
    """Encodes the file in implicit little endian without preamble and file meta, as some archives export it."""
    buffer = io.BytesIO()
    plain = Dataset({element.tag: element for element in made})
    plain.save_as(buffer, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def write(path: Path, pixels: Array | None = None, **options: Any) -> FileDataset:
    """Writes a file and returns its data set."""
    made = dataset(picture() if pixels is None else pixels, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(made))
    return made


def lookup_table(first: int, entries: Array, bits: int) -> Dataset:
    """Returns an item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return item
