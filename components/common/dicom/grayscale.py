"""What stored values mean: modality and VOI LUT, window, presentation (PS3.4 N.2), computed on values, not on pixels.

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

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import DigitalXRayImageStorageForProcessing

from components.common.dicom.elements import Elements, integer, is_empty, items, number, text
from components.common.dicom.header import Header
from components.common.dicom.refusal import Reason, Refused

Values = npt.NDArray[np.float64]


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


def read_grayscale(elements: Elements, header: Header) -> Grayscale:
    """Reads how to show the pixels.

    Raises:
        Refused: what the data set says of it makes no sense.
    """
    allocated = integer(elements, "BitsAllocated", 0)
    bits = integer(elements, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise Refused(Reason.UNREADABLE, f"{bits} bits stored in {allocated}")
    signed = bool(integer(elements, "PixelRepresentation", 0))
    slope, intercept = number(elements, "RescaleSlope", 1.0), number(elements, "RescaleIntercept", 0.0)
    if not (slope and np.isfinite(slope) and np.isfinite(intercept)):
        raise Refused(Reason.UNREADABLE, "the rescale is not a number or flat")
    modality = _read_lut(elements, "ModalityLUTSequence", signed)
    lowest = min(slope * end for end in ((-1 << (bits - 1), 0) if signed else (0, (1 << bits) - 1))) + intercept
    voi = _read_lut(elements, "VOILUTSequence", signed=not modality and lowest < 0) or _read_window(elements)
    unprocessed = voi is None and _is_for_processing(elements, header)
    return Grayscale(
        bits, signed, slope, intercept, modality, voi,
        inverse=_is_inverse(elements, header, unprocessed), padding=_read_padding(elements, bits, signed), unprocessed=unprocessed,
    )  # fmt: skip


def _is_for_processing(elements: Elements, header: Header) -> bool:
    """By Presentation Intent Type, or by SOP class where there is none: images for presentation do come under the other's class."""
    intent = text(elements, "PresentationIntentType").upper()
    return intent == "FOR PROCESSING" if intent else header.sop_class == DigitalXRayImageStorageForProcessing


def _is_inverse(elements: Elements, header: Header, unprocessed: bool) -> bool:
    """Whether low values are bright; before processing, whether they are of less exposure (PS3.3 C.8.11.3.1.2)."""
    sign = integer(elements, "PixelIntensityRelationshipSign", 0)
    if unprocessed and sign:
        return sign > 0
    return "MONOCHROME1" in header.photometric or text(elements, "PresentationLUTShape").upper() == "INVERSE"


def _read_window(elements: Elements) -> Window | None:
    """The first view's window."""
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
    """The first item of a LUT sequence; `signed`: its inputs can be negative."""
    found = items(elements, keyword)
    if not found:
        return None
    size, first, bits = (int(value) & 0xFFFF for value in found[0].LUTDescriptor)
    size = size or 0x10000
    entries = _lut_entries(found[0].LUTData, size, "<" if elements.little else ">")
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


def _read_padding(elements: Elements, bits: int, signed: bool) -> tuple[int, int] | None:
    """Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2), whichever sign they were written with."""
    if is_empty(elements, "PixelPaddingValue"):
        return None
    value = integer(elements, "PixelPaddingValue", 0)
    limit = integer(elements, "PixelPaddingRangeLimit", value)
    numbers = [number & ((1 << bits) - 1) for number in (value, limit)]
    if signed:
        numbers = [number - (1 << bits) if number >> (bits - 1) else number for number in numbers]
    return min(numbers), max(numbers)
