"""Manufacturer of the device, the only free text that is published: without whatever could name a person or a place.

Some files hold the name of a hospital, a room or a technician there. A word is published if it belongs to a known maker, or if it
occurs nowhere else in the header.
"""

import re
import unicodedata
from collections.abc import Iterable

from components.common.dicom.elements import Element, Elements, text

_MAKERS = (
    "AGFA", "GEVAERT", "ARCOMA", "CANON", "CARERAY", "CARESTREAM", "KODAK", "EASTMAN", "DRGEM", "DRTECH", "FUJI", "FUJIFILM", "PHOTO",
    "FILM", "GE", "HEALTHINEERS", "HITACHI", "HOLOGIC", "LORAD", "ICRCO", "IRAY", "KONICA", "MINOLTA", "LUMISYS", "MINDRAY", "NEUSOFT",
    "PERKINELMER", "PHILIPS", "RAYENCE", "SAMSUNG", "SEDECAL", "SHIMADZU", "SIEMENS", "STEPHANIX", "SWISSRAY", "THALES", "TOSHIBA",
    "TRIXELL", "VAREX", "VARIAN", "VIEWORKS", "WANDONG",
)  # fmt: skip
"""Words in the names of makers of radiography systems. Their names stand in private and descriptive elements as well."""
_GENERIC = (
    "MEDICAL", "MEDIZIN", "SYSTEM", "SYSTEMS", "HEALTH", "HEALTHCARE", "IMAGING", "TECHNOLOGY", "TECHNOLOGIES", "ELECTRONICS", "CENTER",
    "CENTRE", "THE", "AND", "OF", "DE", "CO", "CORP", "CORPORATION", "COMPANY", "INC", "LTD", "LLC", "GMBH", "AG", "KG", "SE", "SA", "NV",
    "BV", "AB", "AS", "SPA", "SRL", "CR", "DR", "DX", "XRAY", "RAY", "DIGITAL",
)  # fmt: skip
"""Words of companies that identify nobody."""
_MANUFACTURER = 0x00080070
_SHORTEST_PART = 4  # shorter words are compared as a whole only
_LETTERS = str.maketrans({"Ł": "L", "Ø": "O", "Đ": "D", "Æ": "AE", "Œ": "OE"})  # letters that Unicode does not decompose
_WORD = re.compile(r"[^\W_]{2,}")
_DIGRAPH = re.compile("([AOU])E")


def read_manufacturer(elements: Elements) -> str:
    """Returns Manufacturer in upper case; empty if it is missing or could identify a person or a place.

    It could if it is written like a person's name, holds a long number, or if a word that is neither a maker's nor generic occurs in any
    other text of the header, in private elements and sequences too. Case, accents and the order of words are ignored.
    """
    stored = elements.find("Manufacturer")  # before it is converted, for the other elements are not
    manufacturer = text(elements, "Manufacturer").upper()
    if not manufacturer or "^" in manufacturer or re.search(r"\d{4}", manufacturer):
        return ""
    names = _words([manufacturer, *([stored.value] if isinstance(stored, Element) else [])]) - _PUBLIC
    if not names:
        return manufacturer
    others = _words(value for tag, value in elements.words() if tag != _MANUFACTURER) - _PUBLIC
    return "" if any(_repeats(name, word) for name in names for word in others) else manufacturer


def _words(values: Iterable[bytes | str]) -> set[str]:
    """Returns the words of stored values in upper case, without accents, and with AE, OE and UE as A, O and U."""
    plain = "\n".join(value if isinstance(value, str) else _decode(value) for value in values).upper()
    if not plain.isascii():
        decomposed = unicodedata.normalize("NFKD", plain.translate(_LETTERS))
        plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return set(_WORD.findall(_DIGRAPH.sub(r"\1", plain)))


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _repeats(name: str, word: str) -> bool:
    shorter, longer = (name, word) if len(name) < len(word) else (word, name)
    return name == word or (len(shorter) >= _SHORTEST_PART and shorter in longer)


_PUBLIC = _words(_MAKERS + _GENERIC)
