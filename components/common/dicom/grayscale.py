"""From stored values to brightness: modality and VOI LUT, window, presentation (PS3.4 N.2), computed per value, not per pixel.

**Position of 0, where values are clipped.** With a VOI LUT or a window, 0 is the lower end of its output. Without either, it is
the value of the lowest possible stored number, so that rescaling to negative values clips nothing and unsigned numbers are
unchanged. Signed pixels often use a small part of their range: for them it is the value of the lowest number present, if that
is negative. MONOCHROME1 counts down from the upper end of the same range.

**Upper end of the range.** Headers often declare more bits than the numbers use, and counting down from there would leave a few gray
levels. The upper end is therefore the largest number of as many bits as the largest number present (unsigned pixels) or the largest entry
(LUTs) has. For signed pixels, it is the largest number present.

**DX for processing** (PS3.3 C.8.11.1.1.1) holds detector values without a VOI. Pixel Intensity Relationship Sign decides which
end is bright, since the photometric interpretation need not be meant for display. The values fill an unknown part of the range,
so that 0 is the percentile opposite to the clipped one. No logarithm is taken: the values of many devices are logarithms
already, and their headers are unreliable about it. Images of linear detectors therefore look flatter in the lungs; use the
images for presentation if you have both.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from components.common.dicom.elements import Elements, integer, items, text
from components.common.dicom.header import MONOCHROME1, Header
from components.common.dicom.refusal import Refused
from components.common.dicom.words import Word, Words
from components.common.formats.quarantine import Reason

Values = npt.NDArray[np.float64]
_DESCRIPTOR = 3  # number of values of a LUT Descriptor
_MAX_ENTRY_BITS = 16
_BYTE = 8


@dataclass(frozen=True)
class Lut:
    """A lookup table of a modality or VOI LUT sequence (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int  # input that maps to the first entry, as all lower ones do
    entries: Values

    @property
    def top(self) -> float:
        """Upper end of the output's range."""
        return _largest(int(self.entries.max()).bit_length())

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

    word: Word
    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    voi: Lut | Window | None = None
    inverse: bool = False  # low values are bright: MONOCHROME1, or Presentation LUT Shape INVERSE (the standard pairs the two)
    unprocessed: bool = False  # a DX image for processing, without a VOI

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
        lowest, highest = int(stored.min()), int(stored.max())
        ends = (min(0, lowest), max(0, highest)) if self.word.signed else (0, _largest(highest.bit_length()))
        low, high = sorted(self._rescale(np.array(ends, np.float64)))
        return float(low), float(high)


class Decoded(NamedTuple):
    """The pixels of a file as they are stored, and what they mean."""

    words: Words  # (H, W)
    grayscale: Grayscale


def read_grayscale(elements: Elements, header: Header, word: Word) -> Grayscale:
    """Reads how to show the pixels of a DICOM file; raises Refused if its attributes are invalid."""
    slope, intercept = _decimal(elements, "RescaleSlope", 1), _decimal(elements, "RescaleIntercept", 0)
    if not slope:
        raise Refused(Reason.UNREADABLE, "the rescale is flat")
    modality = _read_lut(elements, "ModalityLUTSequence", word.signed)
    lowest = min(slope * end for end in ((-1 << (word.bits - 1), 0) if word.signed else (0, _largest(word.bits)))) + intercept
    voi = _read_voi(elements, signed=not modality and lowest < 0)
    unprocessed = voi is None and _is_for_processing(elements, header)
    return Grayscale(word, slope, intercept, modality, voi, _is_inverse(elements, header, unprocessed), unprocessed)


def _largest(bits: int) -> int:
    """Returns the largest unsigned number of so many bits."""
    return (1 << bits) - 1


def _decimal(elements: Elements, keyword: str, default: float) -> float:
    try:
        number = float(text(elements, keyword) or default)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise Refused(Reason.UNREADABLE, f"{keyword} is not a number")
    return number


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


def _read_voi(elements: Elements, signed: bool) -> Lut | Window | None:
    """Reads the VOI LUT, else the window: where a file has both, they are alternatives (PS3.3 C.11.2.1), so that one is enough."""
    try:
        lut = _read_lut(elements, "VOILUTSequence", signed)
    except Refused:
        window = _read_window(elements)
        if window is None:
            raise
        return window
    return lut or _read_window(elements)


def _read_window(elements: Elements) -> Window | None:
    """Reads the first of the windows."""
    if not text(elements, "WindowCenter") or not text(elements, "WindowWidth"):
        return None
    function = text(elements, "VOILUTFunction").upper() or "LINEAR"
    window = Window(_decimal(elements, "WindowCenter", 0), _decimal(elements, "WindowWidth", 0), function)
    if window.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Refused(Reason.UNREADABLE, "an unknown VOI LUT Function")
    if window.width <= 0:
        raise Refused(Reason.UNREADABLE, "the window's width is not positive")
    if window.function == "LINEAR" and window.width < 1:
        raise Refused(Reason.UNREADABLE, "the window's width is less than 1, which only LINEAR_EXACT and SIGMOID permit")
    return window


def _read_lut(elements: Elements, keyword: str, signed: bool) -> Lut | None:
    """Reads the first item of a LUT sequence that has data; its inputs can be negative if `signed`."""
    order = "<" if elements.is_little_endian else ">"
    for item in items(elements, keyword):
        data = _words_of(item, "LUTData", order)
        if data.size:
            return _lut(_words_of(item, "LUTDescriptor", order), data, signed)
    return None


def _lut(descriptor: Values, data: Values, signed: bool) -> Lut:
    """Reads LUT Data, one entry a word, or two if entries have 8 bits (PS3.3 C.11.1.1.1)."""
    if descriptor.size != _DESCRIPTOR or not 1 <= descriptor[2] <= _MAX_ENTRY_BITS:
        raise Refused(Reason.UNREADABLE, "an invalid descriptor of a lookup table")
    size, first, bits = int(descriptor[0]) or 0x10000, int(descriptor[1]), int(descriptor[2])
    if data.size == (size + 1) // 2 < size and bits <= _BYTE:
        data = np.stack([data % 256, data // 256], axis=1).reshape(-1)
    if not 0 <= data.size - size <= 1:  # data may end with a word of padding
        raise Refused(Reason.UNREADABLE, "a lookup table that does not fit its descriptor")
    return Lut(first - 0x10000 if signed and first & 0x8000 else first, data[:size])


def _words_of(item: Dataset, keyword: str, order: str) -> Values:
    """Returns the 16-bit words (N,) of an element: from bytes, or from numbers if its VR is US or SS."""
    value = item.get(keyword)
    if value is None:
        return np.empty(0)
    if isinstance(value, bytes):
        return np.frombuffer(value + bytes(len(value) % 2), f"{order}u2").astype(np.float64)
    return np.asarray(value, np.float64).reshape(-1) % 0x10000
