"""How stored numbers lie in the words of pixel data (PS3.5 8.1.1), read in one way for every transfer syntax.

A word is a sample of Bits Allocated, or what a codestream decodes to. Bits Stored and High Bit say which of its bits are the number, Pixel
Representation whether that is two's complement. The other bits can be copies of the sign, embedded overlays, padding, or anything at all.
Numbers are computed per value that occurs, not per pixel.

**Where header and pixels contradict each other**, neighbouring pixels that differ in the bits in question decide: if the numbers jump
there, and would not, or less, if these bits belonged to them, the header is wrong, and the file is refused.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.dicom.elements import Elements, integer, is_empty
from components.common.dicom.refusal import Refused
from components.common.formats.quarantine import Reason

Words = npt.NDArray[np.unsignedinteger[Any]]  # uint8 or uint16 (H, W)
Values = npt.NDArray[np.intp]  # (N,)

_JUMP = 1 / 8  # share of the range; most neighbours in a radiograph differ by much less
_OVERLAY_BIT_POSITIONS = tuple(f"{group:04X}0102" for group in range(0x6000, 0x6020, 2))


@dataclass(frozen=True)
class Word:
    """How numbers lie in words."""

    bits: int  # Bits Stored, or the precision of the codestream if that is lower
    signed: bool = False  # two's complement
    shift: int = 0  # number of unused bits below the number
    width: int = 16  # number of bits of a word that can be set
    overlays: int = 0  # bits that hold overlays
    padding: tuple[int, int] | None = None  # lowest and highest number that mean "no image here"; they can exceed Bits Stored
    doubtful: int = 0  # bits of the number that could mean something else, since header and codestream differ

    def numbers(self, words: Values) -> Values:
        """Returns the numbers (N,) in words (N,)."""
        return _number(words >> self.shift & (1 << self.bits) - 1, self.bits, self.signed)

    def used_bits(self, words: Words) -> int:
        """Returns a number of bits that holds each word of an image (H, W)."""
        highest = self.shift + self.bits
        return highest if highest == 8 * words.itemsize else max(highest, int(words.max()).bit_length())

    def without_padding(self, words: Words, present: Values) -> Values:
        """Returns those of the words (N,) present in an image (H, W) that are not padding; raises Refused if their bits do not fit."""
        kept = present if self.padding is None else present[~self._is_padding(present, *self.padding)]
        odd = int(np.bitwise_or.reduce(self._unexplained(kept), initial=0))
        if odd & (1 << self.shift) - 1 and not replace(self, shift=0)._unexplained(kept).any():
            raise Refused(Reason.UNREADABLE, "High Bit does not fit the pixels")
        odd = odd >> self.shift << self.shift | self.doubtful
        if odd and kept.size and self._is_torn(words, kept, odd):
            raise Refused(Reason.UNREADABLE, f"numbers that do not fit {self.bits} bits")
        return kept

    def _unexplained(self, words: Values) -> Values:
        """Returns the bits of words (N,) that are neither part of the number, nor copies of its sign, nor overlays."""
        outside = words & ~(((1 << self.bits) - 1) << self.shift) & ~self.overlays
        if self.signed:
            above = (1 << self.width) - (1 << self.shift + self.bits)
            outside -= np.where((self.numbers(words) < 0) & (words & above == above), outside & above, 0)
        return outside

    def _is_padding(self, words: Values, lowest: int, highest: int) -> npt.NDArray[np.bool_]:
        """Compares the numbers, and whole words if these hold more: some devices pad with a word that exceeds Bits Stored."""
        numbers, whole = self.numbers(words), _number(words & ~self.overlays, self.width, lowest < 0)
        whole = np.where(self._unexplained(words), whole, numbers)
        return (numbers >= lowest) & (numbers <= highest) | (whole >= lowest) & (whole <= highest)

    def _is_torn(self, words: Words, present: Values, odd: int) -> bool:
        """Whether the numbers jump where one of the bits `odd` changes, and would not, or less, if all bits of a word belonged to them."""
        used = int(present.max()).bit_length()
        numbers, *whole = self.numbers(present), _number(present, used, False), _number(present, used, True)
        step = _step(words, present, numbers, odd)
        if step < _JUMP * np.ptp(numbers):
            return False
        return any(_step(words, present, each, odd) < max(step, _JUMP * np.ptp(each)) for each in whole)


def read_word(elements: Elements) -> Word:
    """Reads how the header says that numbers lie in words of Bits Allocated; raises Refused if that is impossible."""
    allocated = integer(elements, "BitsAllocated", 0)
    bits = integer(elements, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise Refused(Reason.UNREADABLE, f"{bits} bits stored in {allocated}")
    shift = integer(elements, "HighBit", bits - 1) + 1 - bits
    if not 0 <= shift <= allocated - bits:
        raise Refused(Reason.UNREADABLE, "High Bit does not fit Bits Stored")
    signed = bool(integer(elements, "PixelRepresentation", 0))
    overlays = sum({1 << position for keyword in _OVERLAY_BIT_POSITIONS if 0 < (position := integer(elements, keyword, 0)) < allocated})
    return Word(bits, signed, shift, allocated, overlays, _read_padding(elements, bits, signed))


def word_of_samples(word: Word, precision: int, signed: bool) -> Word:
    """Returns how numbers lie in the samples of a codestream, which has a precision and, in JPEG 2000, a sign of its own.

    Samples too narrow for High Bit are the numbers themselves. The sign of the header counts, as most codestreams state none. Samples
    without a sign then have it in their own highest bit.
    """
    bits = word.bits if signed == word.signed else min(word.bits, precision)
    doubtful = 1 << (bits - 1) if signed != word.signed and (signed or bits < word.bits) else 0
    width = min(word.width, (8 if precision <= 8 else 16) if signed else precision)
    shift = word.shift if precision >= word.shift + word.bits else 0
    return replace(word, bits=min(bits, width), shift=shift, width=width, doubtful=doubtful)


def _step(words: Words, present: Values, numbers: Values, odd: int) -> float:
    """Returns the median difference of the numbers of neighbours that differ in one of the bits `odd`; 0 if there are none."""
    table = np.full(1 << 8 * words.itemsize, np.nan, np.float32)
    table[present] = numbers
    image = table[words]
    steps = np.concatenate([np.abs(np.diff(image, axis=axis))[np.diff(words & odd, axis=axis) != 0] for axis in (0, 1)])
    steps = steps[np.isfinite(steps)]  # padding is NaN
    return float(np.median(steps)) if steps.size else 0.0


def _number(patterns: Values, bits: int, signed: bool) -> Values:
    """Reads bit patterns (N,) as unsigned numbers, or in two's complement."""
    return np.where(patterns >> (bits - 1), patterns - (1 << bits), patterns) if signed else patterns


def _read_padding(elements: Elements, bits: int, signed: bool) -> tuple[int, int] | None:
    """Reads Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2) as numbers, whatever sign they were written with."""
    if is_empty(elements, "PixelPaddingValue"):
        return None
    value = integer(elements, "PixelPaddingValue", 0)
    ends = [_padding_number(end, bits, signed) for end in (value, integer(elements, "PixelPaddingRangeLimit", value))]
    return min(ends), max(ends)


def _padding_number(value: int, bits: int, signed: bool) -> int:
    """Returns the number that pixels of this value have, or one beyond Bits Stored if there can be none."""
    pattern = value & 0xFFFF
    if pattern >> bits and not signed:
        return value
    return int(_number(np.array(pattern), 16 if pattern >> bits else bits, signed))
