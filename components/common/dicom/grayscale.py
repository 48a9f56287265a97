"""From stored values to brightness: modality and VOI LUT, window, presentation (PS3.4 N.2), computed per value, not per pixel.

**Position of 0, where values are clipped.** With a VOI LUT or a window, 0 is the lower end of its output. Without either, it is
the value of the lowest possible stored number, so that rescaling to negative values clips nothing and unsigned numbers are
unchanged. Signed pixels often use a small part of their range: for them it is the value of the lowest number present, if that
is negative. MONOCHROME1 counts down from the upper end of the same range.

**DX for processing** (PS3.3 C.8.11.1.1.1) holds detector values without a VOI. Pixel Intensity Relationship Sign decides which
end is bright, since the photometric interpretation need not be meant for display. The values fill an unknown part of the range,
so that 0 is the percentile opposite to the clipped one. No logarithm is taken: the values of many devices are logarithms
already, and their headers are unreliable about it. Images of linear detectors therefore look flatter in the lungs; use the
images for presentation if you have both.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.uid import DigitalXRayImageStorageForProcessing

from components.common.dicom.elements import Elements, integer, is_empty, items, text
from components.common.dicom.header import MONOCHROME1, Header
from components.common.dicom.refusal import Refused
from components.common.formats.quarantine import Reason

Stored = npt.NDArray[np.integer[Any]]  # stored values (H, W)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lut:
    """A lookup table of a modality or VOI LUT sequence (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int  # input that maps to the first entry, as all lower ones do
    entries: Values
    top: float  # upper end of the output's range

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
    function: str  # LINEAR, LINEAR_EXACT or SIGMOID

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

    bits: int  # Bits Stored
    signed: bool = False  # Pixel Representation 1: two's complement
    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    voi: Lut | Window | None = None
    inverse: bool = False  # low values are bright: MONOCHROME1, or Presentation LUT Shape INVERSE (the standard pairs the two)
    padding: tuple[int, int] | None = None  # lowest and highest stored value that mean "no image here"
    unprocessed: bool = False  # a DX image for processing, without a VOI

    def numbers(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Returns the stored numbers of bit patterns (N,)."""
        return np.where(codes >> (self.bits - 1), codes - (1 << self.bits), codes) if self.signed else codes

    def without_padding(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Returns those of the bit patterns (N,) that are not padding."""
        if self.padding is None:
            return codes
        numbers = self.numbers(codes)
        return codes[(numbers < self.padding[0]) | (numbers > self.padding[1])]

    def brightness(self, stored: npt.NDArray[np.intp]) -> Values:
        """Maps the stored numbers (N,) that occur in an image to brightness from 0 up."""
        values = self._rescale(stored.astype(np.float64))
        if self.voi is not None:
            values, top = self.voi(values), (self.voi.top if isinstance(self.voi, Lut) else 1.0)
        else:
            low, top = self._range(stored)
            values, top = values - low, top - low
        return top - values if self.inverse else values

    def _rescale(self, values: Values) -> Values:
        return self.modality(values) if self.modality else values * self.slope + self.intercept

    def _range(self, stored: npt.NDArray[np.intp]) -> tuple[float, float]:
        """Returns both ends of the modality values, as the module's docstring defines them."""
        if self.modality:
            return 0.0, self.modality.top
        ends = (min(0, int(stored.min())), max(0, int(stored.max()))) if self.signed else (0, (1 << self.bits) - 1)
        low, high = sorted(self._rescale(np.array(ends, np.float64)))
        return float(low), float(high)


class Decoded(NamedTuple):
    """The pixels of a file as they are stored, and what they mean."""

    stored: Stored  # (H, W)
    grayscale: Grayscale


def read_grayscale(elements: Elements, header: Header) -> Grayscale:
    """Reads how to show the pixels of a DICOM file; raises Refused if its attributes are invalid."""
    allocated = integer(elements, "BitsAllocated", 0)
    bits = integer(elements, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise Refused(Reason.UNREADABLE, f"{bits} bits stored in {allocated}")
    signed = bool(integer(elements, "PixelRepresentation", 0))
    slope, intercept = float(text(elements, "RescaleSlope") or 1), float(text(elements, "RescaleIntercept") or 0)
    if not (slope and np.isfinite(slope) and np.isfinite(intercept)):
        raise Refused(Reason.UNREADABLE, "the rescale is not a number or flat")
    modality = _read_lut(elements, "ModalityLUTSequence", signed)
    lowest = min(slope * end for end in ((-1 << (bits - 1), 0) if signed else (0, (1 << bits) - 1))) + intercept
    voi = _read_lut(elements, "VOILUTSequence", signed=not modality and lowest < 0) or _read_window(elements)
    unprocessed = voi is None and _is_for_processing(elements, header)
    inverse, padding = _is_inverse(elements, header, unprocessed), _read_padding(elements, bits, signed)
    return Grayscale(bits, signed, slope, intercept, modality, voi, inverse, padding, unprocessed)


def _is_for_processing(elements: Elements, header: Header) -> bool:
    """By Presentation Intent Type, else by SOP class: some images for presentation have the class of images for processing."""
    intent = text(elements, "PresentationIntentType").upper()
    return intent == "FOR PROCESSING" if intent else header.sop_class == DigitalXRayImageStorageForProcessing


def _is_inverse(elements: Elements, header: Header, unprocessed: bool) -> bool:
    """Whether low values are bright; in images for processing, whether they mean less exposure (PS3.3 C.8.11.3.1.2)."""
    sign = integer(elements, "PixelIntensityRelationshipSign", 0)
    if unprocessed and sign:
        return sign > 0
    return MONOCHROME1 in header.photometric or text(elements, "PresentationLUTShape").upper() == "INVERSE"


def _read_window(elements: Elements) -> Window | None:
    """Reads the first of the windows."""
    center, width = text(elements, "WindowCenter"), text(elements, "WindowWidth")
    if not center or not width:
        return None
    window = Window(float(center), float(width), text(elements, "VOILUTFunction").upper() or "LINEAR")
    if window.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Refused(Reason.UNREADABLE, "an unknown VOI LUT Function")
    lowest = 1 if window.function == "LINEAR" else np.nextafter(0, 1)
    if not (np.isfinite(window.center) and lowest <= window.width < np.inf):
        raise Refused(Reason.UNREADABLE, "the window's width is not positive")
    return window


def _read_lut(elements: Elements, keyword: str, signed: bool) -> Lut | None:
    """Reads the first item of a LUT sequence, whose inputs can be negative if `signed`."""
    found = items(elements, keyword)
    if not found:
        return None
    size, first, bits = (int(value) & 0xFFFF for value in found[0].LUTDescriptor)
    size = size or 0x10000
    entries = _lut_entries(found[0].LUTData, size, "<" if elements.is_little_endian else ">")
    if entries.size != size or not 1 <= bits <= 16:
        raise Refused(Reason.UNREADABLE, "a lookup table that does not fit its descriptor")
    first = first - 0x10000 if signed and first & 0x8000 else first
    return Lut(first, entries, max(2.0**bits - 1, float(entries.max())))


def _lut_entries(data: Any, size: int, order: str) -> Values:
    """Reads LUT Data as words, or as bytes if it is too short for words (8-bit tables packed two to a word)."""
    if isinstance(data, bytes):
        words = len(data) >= 2 * size
        return np.frombuffer(data, f"{order}u2" if words else "u1")[:size].astype(np.float64)
    return np.asarray(data, np.float64).reshape(-1)[:size] % 0x10000


def _read_padding(elements: Elements, bits: int, signed: bool) -> tuple[int, int] | None:
    """Reads Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2), whatever sign they were written with."""
    if is_empty(elements, "PixelPaddingValue"):
        return None
    value = integer(elements, "PixelPaddingValue", 0)
    limit = integer(elements, "PixelPaddingRangeLimit", value)
    numbers = [number & ((1 << bits) - 1) for number in (value, limit)]
    if signed:
        numbers = [number - (1 << bits) if number >> (bits - 1) else number for number in numbers]
    return min(numbers), max(numbers)
