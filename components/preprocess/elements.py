"""Values of a data set's elements, without pydicom's conversion where it would change nothing: it costs as much as the parsing."""

from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

_TEXT_VRS = frozenset({"AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "UI"})
_SHORT_VRS = frozenset({"US"})
_ESCAPE = b"\x1b"
"""Changes the character set (PS3.5 6.1.2.5)."""
_PADDING = " \0\t\r\n"


def text(dataset: Dataset, keyword: str) -> str:
    """The element's first value, stripped; empty where it is missing."""
    raw = _raw(dataset, keyword, _TEXT_VRS)
    if raw is not None and raw.isascii() and _ESCAPE not in raw:
        return raw.split(b"\\", 1)[0].decode().strip(_PADDING)
    value = dataset[_tag(keyword)].value
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(_PADDING)


def integer(dataset: Dataset, keyword: str, default: int) -> int:
    """The element's value, or the default where it is missing or empty."""
    raw = _raw(dataset, keyword, _SHORT_VRS)
    if raw is not None and len(raw) in (0, 2):
        return int.from_bytes(raw, "little" if dataset.original_encoding[1] else "big") if raw else default
    value = dataset[_tag(keyword)].value
    return default if value is None or value == "" else int(value)


def number(dataset: Dataset, keyword: str, default: float) -> float:
    """The element's first value, or the default where it is missing or empty."""
    written = text(dataset, keyword)
    return float(written) if written else default


def pixel_data(dataset: Dataset) -> Any:
    """Pixel Data as it lies in the file: bytes, unless the file is damaged; None where it is missing."""
    tag = _tag("PixelData")
    return dataset.get_item(tag).value if tag in dataset else None


def _raw(dataset: Dataset, keyword: str, vrs: frozenset[str]) -> bytes | None:
    """The value as it was read, empty where it is missing; None where its VR is not one of `vrs`, or it is converted already."""
    tag = _tag(keyword)
    if tag not in dataset:
        return b""
    element = dataset.get_item(tag)
    if not isinstance(element, RawDataElement) or (element.VR or dictionary_VR(tag)) not in vrs:
        return None
    return element.value or b""


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)
