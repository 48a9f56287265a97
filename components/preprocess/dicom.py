"""A DICOM file's bytes to the picture a radiologist would see.

The order is the standard's (PS3.4 N.2): stored value -> modality LUT or rescale -> VOI LUT or window -> presentation
(MONOCHROME1 inverted). All of it is computed once per stored value that occurs, not once per pixel, and so is the
paper's clip to [0, 99th percentile]; one lookup table then makes the image.

**Where 0 lies before the clip.** With a VOI LUT or a window, at the lower end of its output. Without either, at the
value that the lowest possible stored number stands for, so that rescaling to negative values never cuts anything off and
unsigned numbers stay as they are; for signed pixels, of which often a small part of the range is used, at the lowest
number present if that is negative. MONOCHROME1 counts down from the upper end of the same range.

**DX for processing** (PS3.3 C.8.11.1.1.1) holds what the detector counted, without a VOI to show it by. Dense tissue is made
bright by Pixel Intensity Relationship Sign, since its photometric interpretation need not be meant for display. The values fill
an unknown part of the range, so that 0 lies at the percentile opposite to the one that is clipped at. No logarithm is taken:
many devices' values are logarithms already, and say so unreliably; a linear detector's images therefore look flatter in the
lungs, and whoever has the images for presentation, too, should use those.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from components.common.errors import UserError
from components.common.shards import Pixels
from components.preprocess import attributes
from components.preprocess.checks import MAX_PIXELS, PHOTOMETRICS, Reason, Refused

Stored = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.float64]

# Its log quotes header values, too.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
# The processes of the pool are the parallelism.
cv2.setNumThreads(1)

JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
RLE = "1.2.840.10008.1.2.5"
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
"""Baseline, extended, lossless (process 14), lossless with first-order prediction."""
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(JPEG2000 + HTJ2K, partial(imagecodecs.jpeg2k_decode, numthreads=1)),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
}
"""By transfer syntax: OpenJPEG, CharLS and libjpeg-turbo, called directly: pydicom's plugins for the same libraries are up to a
fifth slower, and none for JPEG lossless is both fast and free of the GPL. (OpenJPH is faster than OpenJPEG for HTJ2K, but
imagecodecs returns what it made of a damaged codestream as if it were whole.)"""

MAX_FILE_BYTES = 512 * 2**20
MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 2**24
_FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_EXACT_COUNT = 2**24
_TEXT_VRS = frozenset({"AS", "CS", "DA", "DS", "IS", "LO", "SH", "UI"})
_SHORT_VRS = frozenset({"US"})


@dataclass(frozen=True)
class Header:
    """What one file's header says, as plain values; text is stripped, and empty where it is missing."""

    sop_instance_uid: str
    sop_class: str
    modality: str
    body_part: str
    view: str
    photometric: str
    burned_in: str
    transfer_syntax: str
    patient_id: str
    study_instance_uid: str
    sex: str
    age: str
    birth_date: str
    study_date: str
    manufacturer: str
    synthetic: bool
    has_pixels: bool
    samples: int
    height: int
    width: int


@dataclass(frozen=True)
class Lut:
    """A lookup table of a modality or VOI LUT sequence (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int
    """Input that maps to the first entry; whatever is lower maps there too."""
    entries: Values
    top: float
    """Upper end of the output's range."""

    def __call__(self, values: Values) -> Values:
        """(N,) -> (N,)."""
        index = np.clip(np.rint(values) - self.first, 0, self.entries.size - 1)
        entries: Values = self.entries[index.astype(np.intp)]
        return entries


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: str
    """LINEAR, LINEAR_EXACT or SIGMOID."""

    def __call__(self, values: Values) -> Values:
        """(N,) -> (N,) in [0, 1]."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                rising: Values = 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
                return rising
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        center, width = self.center - 0.5, self.width - 1
        if not width:
            return np.where(values > center, 1.0, 0.0)
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True)
class Grayscale:
    """How stored values become brightness."""

    bits: int
    """Bits Stored."""
    signed: bool
    """Pixel Representation 1: two's complement."""
    slope: float
    intercept: float
    modality: Lut | None
    voi: Lut | Window | None
    inverse: bool
    """Low values are bright: MONOCHROME1, or Presentation LUT Shape INVERSE (the standard pairs the two)."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value that mean "no image here"."""
    unprocessed: bool = False
    """A DX image for processing, with nothing that says how to show it."""

    def numbers(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Bit patterns (N,) of `bits` bits as the numbers that they stand for."""
        return np.where(codes >> (self.bits - 1), codes - (1 << self.bits), codes) if self.signed else codes

    def without_padding(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The bit patterns (N,) that stand for image."""
        if self.padding is None:
            return codes
        numbers = self.numbers(codes)
        return codes[(numbers < self.padding[0]) | (numbers > self.padding[1])]

    def brightness(self, stored: npt.NDArray[np.intp]) -> Values:
        """Stored numbers (N,) that occur in an image, as brightness from 0 up."""
        values = self._modality(stored.astype(np.float64))
        if self.voi is not None:
            values, top = self.voi(values), (self.voi.top if isinstance(self.voi, Lut) else 1.0)
        else:
            low, top = self._range(stored)
            values, top = values - low, top - low
        return top - values if self.inverse else values

    def _modality(self, values: Values) -> Values:
        return self.modality(values) if self.modality else values * self.slope + self.intercept

    def _range(self, stored: npt.NDArray[np.intp]) -> tuple[float, float]:
        """Lower and upper end of the modality values, as the module's docstring says."""
        if self.modality:
            return 0.0, self.modality.top
        ends = (min(0, int(stored.min())), max(0, int(stored.max()))) if self.signed else (0, (1 << self.bits) - 1)
        low, high = sorted(self._modality(np.array(ends, np.float64)))
        return float(low), float(high)


def check_decoders() -> None:
    """Makes sure that the decoders are installed, before files are refused for want of them.

    Raises:
        UserError: one is missing.
    """
    for codec in ("jpeg2k", "jpegls", "jpeg8", "dicomrle"):
        if not getattr(imagecodecs, codec.upper()).available:
            raise UserError(f"imagecodecs was built without its codec {codec}; run `make .venv`")


def open_file(content: bytes) -> tuple[Dataset, Header]:
    """Parses a file.

    Raises:
        Refused: not DICOM, truncated before the pixels, or too large to be a radiograph.
    """
    if len(content) > MAX_FILE_BYTES:
        raise Refused(Reason.UNREADABLE, f"a file of {len(content)} bytes")
    preamble = content[128:132] == b"DICM"
    if not preamble and content[:2] not in _FIRST_TAGS:
        raise Refused(Reason.NOT_DICOM, "no DICM prefix" if content else "an empty file")
    with _refusing(Reason.UNREADABLE if preamble else Reason.NOT_DICOM):
        content, deflated = _inflated(content)
        dataset = dcmread(BytesIO(content), force=not preamble)
        header = _read_header(dataset, deflated)
    if not preamble and not header.sop_class and not header.height:
        raise Refused(Reason.NOT_DICOM, "no DICM prefix and no image attributes")
    if not header.has_pixels and any(tag in content for tag in _PIXEL_DATA_TAGS):
        raise Refused(Reason.UNREADABLE, "truncated")
    return dataset, header


def decode(dataset: Dataset, header: Header) -> tuple[Stored, Grayscale]:
    """Decodes the one frame and reads how to show it.

    Returns:
        Stored values (H, W), and what they mean.

    Raises:
        Refused: undecodable, or pixel data that does not fit the header.
    """
    with _refusing(Reason.UNREADABLE):
        grayscale = _read_grayscale(dataset, header)
        return _decode_frame(dataset, header, grayscale), grayscale


def render(stored: Stored, grayscale: Grayscale, size: int, bits: int, percentile: float) -> Pixels:
    """The image of a row: brightness clipped to [0, percentile], scaled to the full range, resized.

    Args:
        stored: (H, W).
        grayscale: what the stored values mean.
        size: longer side of the result, in pixels.
        bits: 8 or 16, of a pixel of the result.
        percentile: of the pixels that are not padding, interpolated as by numpy.percentile.

    Returns:
        (H', W') with max(H', W') = size, bright = dense tissue.

    Raises:
        Refused: the image is blank.
    """
    codes = _codes(stored, grayscale.bits)
    counts = histogram(codes, grayscale.bits)
    present = grayscale.without_padding(np.flatnonzero(counts))
    if not present.size:
        raise Refused(Reason.BLANK_IMAGE, "nothing but padding")
    brightness = grayscale.brightness(grayscale.numbers(present))
    if grayscale.unprocessed:
        brightness = brightness - _quantile(brightness, counts[present], 100 - percentile)
    upper = _upper_end(brightness, counts[present], percentile)
    full = 2**bits - 1
    scaled = np.clip(brightness, 0, upper) / upper * full
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    if max(stored.shape) == size:
        return _look_up(codes, present, np.rint(scaled), dtype)
    return _quantised(resize(_look_up(codes, present, scaled, np.dtype(np.float32)), size), dtype)


def _quantised(image: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.clip(np.rint(image), 0, np.iinfo(dtype).max).astype(dtype)


def resize(image: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """(H, W) -> (H', W') with the aspect kept and max(H', W') = size: area averages, or linear when enlarging."""
    height, width = resized_shape(image.shape[0], image.shape[1], size)
    method = cv2.INTER_AREA if max(image.shape) > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.float32)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `size`."""
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def histogram(image: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int64]:
    """How often each value below 2**bits occurs in a uint8 or uint16 image (H, W): (2**bits,), exact."""
    values = 1 << bits
    # OpenCV is four times faster than numpy.bincount, but counts in float32.
    rows = max(1, _EXACT_COUNT // image.shape[1])
    counts = np.zeros(values, np.int64)
    for start in range(0, image.shape[0], rows):
        block = cv2.calcHist([image[start : start + rows]], [0], None, [values], [0, values])
        counts += block.ravel().astype(np.int64)
    return counts


def quantile(values: Values, counts: npt.NDArray[np.int64], percentile: float) -> float:
    """numpy.percentile (linear) of ascending `values` (N,) that occur `counts` (N,) times."""
    cumulative = np.cumsum(counts)
    position = (int(cumulative[-1]) - 1) * (percentile / 100)
    below = int(position)
    ranks = np.array([below, min(below + 1, int(cumulative[-1]) - 1)])
    lower, upper = values[np.searchsorted(cumulative, ranks, side="right")]
    weight = position - below
    step = upper - lower
    # As numpy interpolates, to the last bit.
    return float(upper - step * (1 - weight) if weight >= 0.5 else lower + step * weight)


@contextmanager
def _refusing(reason: Reason) -> Iterator[None]:
    """The one place where any exception counts as a verdict on the file: parsers and decoders raise anything.

    Their warnings are dropped: they quote header values, which may identify a patient, and checks.py judges those.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Refused, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the RLE decoder is written in Rust, whose panics are no Exception
        raise Refused(reason, type(error).__name__) from None


def _inflated(content: bytes) -> tuple[bytes, bool]:
    """Content with a deflated data set (PS3.5 A.5) inflated, bounded, and whether it was."""
    uid = DeflatedExplicitVRLittleEndian.encode()
    if uid not in content[:1024] or content[132:138] != b"\x02\x00\x00\x00UL":
        return content, False
    start = 144 + int(struct.unpack_from("<I", content, 140)[0])
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    body = stream.decompress(content[start:], MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise Refused(Reason.UNREADABLE, "inflates beyond any radiograph")
    if not stream.eof:
        raise Refused(Reason.UNREADABLE, "truncated")
    plain = ExplicitVRLittleEndian.encode().ljust(len(uid), b"\0")
    return content[:start].replace(uid, plain) + body, True


def _read_header(dataset: Dataset, deflated: bool) -> Header:
    return Header(
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        sop_class=_text(dataset, "SOPClassUID"),
        modality=_text(dataset, "Modality"),
        body_part=_text(dataset, "BodyPartExamined"),
        view=attributes.read_view(dataset),
        photometric=_text(dataset, "PhotometricInterpretation") or PHOTOMETRICS[1],
        burned_in=_text(dataset, "BurnedInAnnotation"),
        transfer_syntax=DeflatedExplicitVRLittleEndian if deflated else _transfer_syntax(dataset),
        patient_id=_text(dataset, "PatientID"),
        study_instance_uid=_text(dataset, "StudyInstanceUID"),
        sex=_text(dataset, "PatientSex"),
        age=_text(dataset, "PatientAge"),
        birth_date=_text(dataset, "PatientBirthDate"),
        study_date=_text(dataset, "StudyDate"),
        manufacturer=attributes.read_manufacturer(dataset),
        synthetic=_text(dataset, "SyntheticData").upper() == "YES",
        has_pixels=bool(dataset.get("PixelData")),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        height=_integer(dataset, "Rows", 0),
        width=_integer(dataset, "Columns", 0),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    """The element's first value, stripped; empty where it is missing."""
    raw = _raw(dataset, keyword, _TEXT_VRS)
    if raw and raw.isascii() and b"\x1b" not in raw:  # the escape that changes the character set
        return raw.split(b"\\", 1)[0].decode().strip(" \0\t\r\n")
    value = dataset.get(keyword)
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(" \0\t\r\n")


def _integer(dataset: Dataset, keyword: str, default: int) -> int:
    raw = _raw(dataset, keyword, _SHORT_VRS)
    if len(raw) == 2:
        return int.from_bytes(raw, "little" if dataset.original_encoding[1] else "big")
    value = dataset.get(keyword)
    return default if value is None or value == "" else int(value)


def _raw(dataset: Dataset, keyword: str, vrs: frozenset[str]) -> bytes:
    """The value as it was read, if it is of one of the `vrs`, else nothing: pydicom's conversion costs as much as its parsing."""
    tag = _tag(keyword)
    element = dataset.get_item(tag) if tag in dataset else None
    if not isinstance(element, RawDataElement) or (element.VR or dictionary_VR(tag)) not in vrs:
        return b""
    return element.value or b""


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _transfer_syntax(dataset: Dataset) -> str:
    """From the file meta; without it, as pydicom found the encoding to be (implicit little endian unless it shows otherwise)."""
    uid = dataset.file_meta.get("TransferSyntaxUID")
    if uid:
        return str(uid)
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _read_grayscale(dataset: Dataset, header: Header) -> Grayscale:
    allocated = _integer(dataset, "BitsAllocated", 0)
    bits = _integer(dataset, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise Refused(Reason.UNREADABLE, f"{bits} bits stored in {allocated}")
    signed = bool(_integer(dataset, "PixelRepresentation", 0))
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if not (slope and np.isfinite(slope) and np.isfinite(intercept)):
        raise Refused(Reason.UNREADABLE, "the rescale is not a number or flat")
    modality = _read_lut(dataset, "ModalityLUTSequence", signed)
    lowest = min(slope * end for end in ((-1 << (bits - 1), 0) if signed else (0, (1 << bits) - 1))) + intercept
    voi = _read_lut(dataset, "VOILUTSequence", signed=not modality and lowest < 0) or _read_window(dataset)
    unprocessed = voi is None and _is_for_processing(dataset, header)
    return Grayscale(
        bits, signed, slope, intercept, modality, voi,
        inverse=_is_inverse(dataset, header, unprocessed), padding=_read_padding(dataset, bits, signed), unprocessed=unprocessed,
    )  # fmt: skip


def _is_for_processing(dataset: Dataset, header: Header) -> bool:
    """By Presentation Intent Type, or by SOP class where there is none: images for presentation do come under the other's class."""
    intent = _text(dataset, "PresentationIntentType").upper()
    return intent == "FOR PROCESSING" if intent else header.sop_class == DigitalXRayImageStorageForProcessing


def _is_inverse(dataset: Dataset, header: Header, unprocessed: bool) -> bool:
    """Whether low values are bright; before processing, whether they are of less exposure (PS3.3 C.8.11.3.1.2)."""
    sign = _integer(dataset, "PixelIntensityRelationshipSign", 0)
    if unprocessed and sign:
        return sign > 0
    return "MONOCHROME1" in header.photometric or _text(dataset, "PresentationLUTShape").upper() == "INVERSE"


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    text = _text(dataset, keyword)
    return float(text) if text else default


def _read_window(dataset: Dataset) -> Window | None:
    """The first view's window."""
    center, width = _text(dataset, "WindowCenter"), _text(dataset, "WindowWidth")
    if not center or not width:
        return None
    window = Window(float(center), float(width), _text(dataset, "VOILUTFunction").upper() or "LINEAR")
    if window.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Refused(Reason.UNREADABLE, "an unknown VOI LUT Function")
    lowest = 1 if window.function == "LINEAR" else np.nextafter(0, 1)
    if not (np.isfinite(window.center) and lowest <= window.width < np.inf):
        raise Refused(Reason.UNREADABLE, "the window's width is not positive")
    return window


def _read_lut(dataset: Dataset, keyword: str, signed: bool) -> Lut | None:
    """The first item of a LUT sequence; `signed`: its inputs can be negative."""
    items = dataset.get(keyword)
    if not items:
        return None
    size, first, bits = (int(value) & 0xFFFF for value in items[0].LUTDescriptor)
    size = size or 0x10000
    entries = _lut_entries(items[0].LUTData, size, "<" if dataset.original_encoding[1] else ">")
    if entries.size != size or not 1 <= bits <= 16:
        raise Refused(Reason.UNREADABLE, "a lookup table that does not fit its descriptor")
    first = first - 0x10000 if signed and first & 0x8000 else first
    return Lut(first, entries, max(2.0**bits - 1, float(entries.max())))


def _lut_entries(data: Any, size: int, order: str) -> Values:
    """LUT Data, read as words; as bytes if only those suffice (8-bit tables packed two to a word)."""
    if isinstance(data, bytes):
        words = len(data) >= 2 * size
        return np.frombuffer(data, f"{order}u2" if words else "u1")[:size].astype(np.float64)
    return np.asarray(data, np.float64).reshape(-1)[:size] % 0x10000


def _read_padding(dataset: Dataset, bits: int, signed: bool) -> tuple[int, int] | None:
    """Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2), whichever sign they were written with."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    value = _integer(dataset, "PixelPaddingValue", 0)
    limit = _integer(dataset, "PixelPaddingRangeLimit", value)
    numbers = [number & ((1 << bits) - 1) for number in (value, limit)]
    if signed:
        numbers = [number - (1 << bits) if number >> (bits - 1) else number for number in numbers]
    return min(numbers), max(numbers)


def _decode_frame(dataset: Dataset, header: Header, grayscale: Grayscale) -> Stored:
    if _integer(dataset, "NumberOfFrames", 1) != 1:
        raise Refused(Reason.UNREADABLE, "several frames")
    if header.height < 1 or header.width < 1:
        raise Refused(Reason.UNREADABLE, "no Rows or Columns")
    syntax, allocated = UID(header.transfer_syntax), int(dataset.BitsAllocated)
    if syntax.is_encapsulated:
        return _decode_encapsulated(dataset, header, grayscale, allocated)
    return _decode_native(dataset, header, grayscale, allocated)


def _decode_native(dataset: Dataset, header: Header, grayscale: Grayscale, allocated: int) -> Stored:
    _check_native(dataset, header, allocated)
    options: dict[str, Any] = {
        "rows": header.height, "columns": header.width, "samples_per_pixel": 1, "number_of_frames": 1,
        "bits_allocated": allocated, "bits_stored": grayscale.bits, "pixel_representation": int(grayscale.signed),
        "photometric_interpretation": header.photometric, "pixel_keyword": "PixelData", "pixel_vr": dataset["PixelData"].VR,
        "view_only": True, "correct_unused_bits": False,
    }  # fmt: skip
    stored, _ = get_decoder(UID(header.transfer_syntax)).as_array(dataset.PixelData, index=0, raw=True, validate=False, **options)
    return _drop_unused_bits(np.ascontiguousarray(stored, stored.dtype.newbyteorder("=")), dataset, grayscale)


def _decode_encapsulated(dataset: Dataset, header: Header, grayscale: Grayscale, allocated: int) -> Stored:
    """Decodes the codestream once it is known to be what the header says, so that no decoder allocates for what a damaged one asks."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if header.transfer_syntax == RLE:
        return _sign(_decode_rle(frame, header, allocated), grayscale)
    if header.transfer_syntax not in DECODERS:
        raise Refused(Reason.UNREADABLE, f"no decoder for {UID(header.transfer_syntax).name}")
    _check_codestream(frame, header)
    decoded = DECODERS[header.transfer_syntax](frame)
    if decoded.shape != (header.height, header.width) or decoded.itemsize > allocated // 8:
        raise Refused(Reason.UNREADABLE, "the codestream holds other pixels than the header says")
    decoded = decoded.astype(f"{decoded.dtype.kind}{allocated // 8}", copy=False)
    _check_range(decoded, grayscale)
    return _sign(decoded, grayscale)


def _decode_rle(frame: bytes, header: Header, allocated: int) -> Stored:
    """Bit patterns (H, W) as they are."""
    size = header.height * header.width * allocated // 8
    if size > 64 * len(frame):  # at most 128 bytes come out of two (PS3.5 G.3)
        raise Refused(Reason.UNREADABLE, f"too short for {header.height} x {header.width} pixels")
    _check_bound(header)
    raw = imagecodecs.dicomrle_decode(frame, dtype=f"<u{allocated // 8}", out=size)
    if len(raw) != size:
        raise Refused(Reason.UNREADABLE, f"{len(raw)} bytes of pixels for {header.height} x {header.width}")
    return np.frombuffer(raw, f"<u{allocated // 8}").reshape(header.height, header.width)


def _sign(stored: Stored, grayscale: Grayscale) -> Stored:
    """Bit patterns (H, W) as numbers, by Pixel Representation: codestreams seldom know the sign, and the header decides."""
    if not grayscale.signed:
        return stored.view(f"u{stored.itemsize}")
    unused = 8 * stored.itemsize - grayscale.bits
    numbers: Stored = (stored.view(f"i{stored.itemsize}") << unused) >> unused
    return numbers


def _check_native(dataset: Dataset, header: Header, allocated: int) -> None:
    """As many bytes as the header says; less than a row more is padding."""
    row = header.width * allocated // 8
    if not 0 <= len(dataset.PixelData) - header.height * row < row:
        raise Refused(Reason.UNREADABLE, f"{len(dataset.PixelData)} bytes of pixels for {header.height} x {header.width}")
    _check_bound(header)


def _check_bound(header: Header) -> None:
    if header.height * header.width > MAX_PIXELS:
        raise Refused(Reason.IMPLAUSIBLE_SIZE, f"{header.height} x {header.width} pixels, not decoded")


def _check_codestream(frame: bytes, header: Header) -> None:
    if codestream_shape(frame) != (header.height, header.width, 1):
        raise Refused(Reason.UNREADABLE, f"the codestream is not of {header.height} x {header.width} pixels")
    if not frame[-64:].rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Refused(Reason.UNREADABLE, "truncated")  # decoders would fill in gray
    _check_bound(header)


def codestream_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and components in a JPEG 2000 SIZ marker (ISO 15444-1 A.5.1) or a JPEG or JPEG-LS frame header (10918-1 B.2.2)."""
    size = re.search(rb"\xff\x4f\xff\x51", frame[:4096])
    if size:
        width, height, left, top = struct.unpack_from(">4I", frame, size.start() + 8)
        components = struct.unpack_from(">H", frame, size.start() + 40)
        return height - top, width - left, components[0]
    position = 2
    while frame[position : position + 1] == b"\xff":
        marker, length = struct.unpack_from(">BH", frame, position + 1)
        if marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", frame, position + 5)
            return height, width, components
        position += 2 + length
    return None


def _check_range(stored: Stored, grayscale: Grayscale) -> None:
    """Values beyond Bits Stored contradict the header; but above a negative number there may be copies of its sign (as of dcmtk's)."""
    half = 1 << (grayscale.bits - 1)
    numbers = stored.view(f"i{stored.itemsize}") if grayscale.signed else stored
    low, high = (-half if numbers.dtype.kind == "i" else 0), (2 * half - 1 if stored.dtype.kind == "u" else half - 1)
    if 8 * stored.itemsize > grayscale.bits and (numbers.min() < low or numbers.max() > high):
        raise Refused(Reason.UNREADABLE, f"values beyond {grayscale.bits} bits")


def _drop_unused_bits(stored: Stored, dataset: Dataset, grayscale: Grayscale) -> Stored:
    """Moves the stored bits to the bottom where High Bit says that they are not."""
    shift = _integer(dataset, "HighBit", grayscale.bits - 1) + 1 - grayscale.bits
    if not 0 <= shift <= 8 * stored.itemsize - grayscale.bits:
        raise Refused(Reason.UNREADABLE, "High Bit does not fit Bits Stored")
    return stored >> shift if shift else stored


def _codes(stored: Stored, bits: int) -> npt.NDArray[Any]:
    """The stored bit patterns (H, W), without what lies above Bits Stored (overlays, copies of the sign)."""
    codes = stored.view(f"u{stored.itemsize}")
    return codes if bits == 8 * stored.itemsize else codes & ((1 << bits) - 1)


def _upper_end(brightness: Values, counts: npt.NDArray[np.int64], percentile: float) -> float:
    """The percentile to clip at; refuses an image whose 1st and 99th percentiles are the same."""
    upper = _quantile(brightness, counts, percentile)
    if upper <= 0 or _quantile(brightness, counts, 1) == _quantile(brightness, counts, 99):
        raise Refused(Reason.BLANK_IMAGE, "at least 98 % of the pixels are the same")
    return upper


def _quantile(brightness: Values, counts: npt.NDArray[np.int64], percentile: float) -> float:
    order = np.argsort(brightness, kind="stable")
    return quantile(brightness[order], counts[order], percentile)


def _look_up(codes: npt.NDArray[Any], present: npt.NDArray[np.intp], values: Values, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`values` of the codes that are `present`, 0 for the others, over the image."""
    table = np.zeros(1 << (8 * codes.itemsize), dtype)
    table[present] = values
    return cv2.LUT(codes, table)
