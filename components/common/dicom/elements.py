"""Values of DICOM data elements, read without pydicom wherever the result is the same: parsing dominates its cost per file.

Nearly all files are written plainly: known VRs, lengths that fit, no sequence of undefined length. `read_plain` splits such a
file into its elements; pydicom parses all others, and converts every value that is not plain text or a number.
"""

import math
import struct
from collections.abc import Callable, Container, Iterator
from functools import cache, cached_property
from typing import Any, NamedTuple

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

_TEXT_VRS = frozenset({"AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "UI"})
_SHORT_VRS = ("US", "SS")
_WORD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UN", "SQ"})  # VRs of what can hold words
_ESCAPE = b"\x1b"  # switches the character set (PS3.5 6.1.2.5)
_PADDING = " \0\t\r\n"
_LONG_LENGTH = {vr.encode(): vr for vr in map(str, EXPLICIT_VR_LENGTH_32)}
_SHORT_LENGTH = {vr.encode(): vr for vr in map(str, EXPLICIT_VR_LENGTH_16)}
_UNDEFINED = 0xFFFFFFFF
ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_PIXEL_DATA = 0x7FE00010
_CHARACTER_SET = 0x00080005
_ITEM_GROUP = 0xFFFE
_PLAIN_CHARACTER_SETS = frozenset({b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192"})
_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHL").unpack_from
_length = struct.Struct("<L").unpack_from


class Element(NamedTuple):
    """A data element as it is stored in the file."""

    vr: str | None  # None if the file does not state it (implicit VR)
    value: bytes


class Elements:
    """The data elements of a data set, or of an item of a sequence: from `read_plain`, else from pydicom, parsed on first use."""

    def __init__(self, plain: dict[int, Element] | None, parse: Callable[[], Dataset]):
        self._plain, self._parse = plain, parse

    @classmethod
    def of(cls, dataset: Dataset) -> "Elements":
        """Wraps a data set that pydicom has parsed."""
        return cls(None, lambda: dataset)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set as parsed by pydicom."""
        return self._parse()

    @property
    def is_little_endian(self) -> bool:
        """Byte order of numbers."""
        return self._plain is not None or bool(self.dataset.original_encoding[1])

    def find(self, keyword: str) -> Element | Any | None:
        """Returns the stored element, pydicom's `DataElement` if it is converted already, or None if it is missing."""
        if self._plain is not None:
            return self._plain.get(_number(keyword))
        tag = _tag(keyword)
        if tag not in self.dataset:
            return None
        found = self.dataset.get_item(tag)
        return Element(found.VR, found.value or b"") if isinstance(found, RawDataElement) else found

    def words(self) -> Iterator[tuple[int, bytes | str]]:
        """Yields tag and unconverted value of every element that can hold words; parts of a sequence have the tag of the sequence."""
        if self._plain is None:
            yield from _words(self.dataset)
            return
        yield from ((tag, value) for tag, (vr, value) in self._plain.items() if (vr or _vr(tag)) in _WORD_VRS)

    def convert(self, keyword: str) -> Any:
        """Returns the value as converted by pydicom; None if it is missing or empty."""
        if self.find(keyword) is None:
            return None
        return self.dataset[_tag(keyword)].value


def read_plain(content: bytes, start: int, implicit: bool) -> dict[int, Element] | None:
    """Reads the little-endian data set from `start` on into the elements that pydicom would give, by tag; None if it is not plain."""
    found: dict[int, Element] = {}
    position, end = start, len(content)
    if implicit and content[start + 4 : start + 6].isalpha():
        return None
    while position <= end - 8:
        vr = None
        if implicit:
            group, element, length = _implicit(content, position)
            position += 8
        else:
            group, element, code, length = _explicit(content, position)
            position += 8
            vr = _SHORT_LENGTH.get(code)
            if vr is None:
                vr = _LONG_LENGTH.get(code)
                if vr is None or position + 4 > end:
                    return None
                length = _length(content, position)[0]
                position += 4
        tag = group << 16 | element
        following = position + length
        if length == _UNDEFINED and tag == _PIXEL_DATA and vr in ("OB", "OW"):
            following = _end_of_fragments(content, position)
            length = following - position - len(_DELIMITER)
        if following > end or length < 0 or group == _ITEM_GROUP:
            return None
        found[tag] = Element(vr, content[position : position + length])
        position = following
    vr, characters = found.get(_CHARACTER_SET, Element("CS", b""))
    known = vr in (None, "CS") and characters.strip(b" ") in _PLAIN_CHARACTER_SETS
    return found if known and position == end else None


def _end_of_fragments(content: bytes, position: int) -> int:
    """Returns the offset behind encapsulated pixel data (PS3.5 A.4) that starts at `position`; 0 if it is malformed."""
    while content[position : position + 4] == ITEM and position + 8 <= len(content):
        position += 8 + int(_length(content, position + 4)[0])
    return position + len(_DELIMITER) if content[position : position + 8] == _DELIMITER else 0


def _words(dataset: Dataset) -> Iterator[tuple[int, bytes | str]]:
    for tag in dataset.keys():  # noqa: SIM118 - iterating over elements would convert them
        found = dataset.get_item(tag, keep_deferred=True)  # else empty ones would be converted
        if isinstance(found, RawDataElement):
            if (found.VR or _vr(tag)) in _WORD_VRS:
                yield tag, found.value or b""
        elif found.VR == "SQ":
            yield from ((tag, value) for item in found.value for _, value in _words(item))
        elif found.VR in _WORD_VRS:
            yield tag, str(found.value)


def text(elements: Elements, keyword: str) -> str:
    """Returns the first value, stripped; empty if the element is missing."""
    raw = _raw(elements, keyword, _TEXT_VRS)
    if raw == b"":
        return ""
    if raw is not None and raw.isascii() and _ESCAPE not in raw:
        return raw.split(b"\\", 1)[0].decode().strip(_PADDING)
    value = elements.convert(keyword)
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(_PADDING)


def integer(elements: Elements, keyword: str, default: int) -> int:
    """Returns the value, or the default if the element is missing or empty."""
    for vr in _SHORT_VRS:
        raw = _raw(elements, keyword, (vr,))
        if raw is not None and len(raw) in (0, 2):
            return int.from_bytes(raw, "little" if elements.is_little_endian else "big", signed=vr == "SS") if raw else default
    value = elements.convert(keyword)
    return default if value is None or value == "" else int(value)


def pair(elements: Elements, keyword: str) -> tuple[float, float]:
    """Returns two numbers; NaN without exactly two finite ones."""
    found = elements.find(keyword)
    value = found.value if found is not None else b""
    try:
        numbers = value.decode("latin-1").strip(_PADDING).split("\\") if isinstance(value, bytes) else value
        first, second = map(float, numbers)
    except (TypeError, ValueError):
        return math.nan, math.nan
    return (first, second) if math.isfinite(first) and math.isfinite(second) else (math.nan, math.nan)


def is_empty(elements: Elements, keyword: str) -> bool:
    """Whether a numeric element is missing or has no value."""
    raw = _raw(elements, keyword, _SHORT_VRS)
    return elements.convert(keyword) is None if raw is None else not raw


def items(elements: Elements, keyword: str) -> list[Dataset]:
    """Returns the items of a sequence; none if it is missing."""
    return list(elements.convert(keyword) or [])


def pixel_data(elements: Elements) -> Any:
    """Returns Pixel Data as stored: bytes, unless the file is damaged; None if it is missing."""
    found = elements.find("PixelData")
    return found.value if found is not None else None


def _raw(elements: Elements, keyword: str, vrs: Container[str]) -> bytes | None:
    """Returns the stored value, empty if it is missing; None if its VR is not among `vrs`, or it is converted already."""
    found = elements.find(keyword)
    if found is None:
        return b""
    # An exact type check, since this runs about forty times per file.
    return found.value if type(found) is Element and (found.vr or _dictionary_vr(keyword)) in vrs else None


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


@cache
def _number(keyword: str) -> int:
    """Returns the tag as a plain int, which hashes and compares faster than a BaseTag."""
    return int(_tag(keyword))


@cache
def _dictionary_vr(keyword: str) -> str:
    return dictionary_VR(_tag(keyword))


@cache
def _vr(tag: int) -> str:
    """Returns the VR of the dictionary, UN if the element is private or unknown."""
    return dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
