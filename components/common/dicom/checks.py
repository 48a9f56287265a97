"""Which files become a row, and the closed list of reasons why others do not.

A missing value is no reason to refuse a file, a wrong one is: many hospital files lack Body Part Examined or View
Position, and public sets wrap their pictures as Secondary Capture objects with Modality CR or DX.
"""

from components.common.dicom.header import PHOTOMETRICS, Header
from components.common.dicom.refusal import Reason, Refused
from components.common.dicom.views import LATERALS, accepts

MODALITIES = ("CR", "DX")
SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, and its multi-frame grayscale kinds
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
)
CHEST = ("CHEST", "THORAX", "TORAX", "LUNG", "PULM", "CXR")
"""Body Part Examined is of the chest if it contains one of these."""
NO_BODY_PART = ("", "UNKNOWN", "OTHER", "DEFAULT")
"""What devices fill in when nobody said."""
MIN_SIDE = 32
"""Pixels of the shorter side below which no radiograph can be recognised."""
MAX_SIDE = 10_000
"""Pixels; the largest detectors (43 cm at 0.1 mm) have 4,300 a side."""
MAX_ASPECT = 4.0
"""Longer to shorter side; a chest is at most 1 : 2."""
MAX_PIXELS = 50_000_000
"""Nothing larger is decoded: it bounds the memory that one file can take."""


def check_header(header: Header, views: tuple[str, ...], view: str) -> None:
    """Judges what the header says.

    Args:
        header: of one file.
        views: accepted View Positions.
        view: the file's, upper case, empty if nobody says.

    Raises:
        Refused: with the first reason that holds.
    """
    if not header.has_pixels:
        raise Refused(Reason.NO_PIXELS)
    _check_modality(header)
    body_part = header.body_part.upper()
    if body_part not in NO_BODY_PART and not any(word in body_part for word in CHEST):
        raise Refused(Reason.WRONG_BODY_PART, "Body Part Examined is not the chest")
    _check_view(view, views)
    if header.samples != 1:
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"{header.samples} samples per pixel")
    if header.photometric not in PHOTOMETRICS:
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "neither MONOCHROME1 nor MONOCHROME2")
    if header.burned_in.upper() == "YES":
        raise Refused(Reason.BURNED_IN_TEXT, "Burned In Annotation is YES")


def _check_view(view: str, views: tuple[str, ...]) -> None:
    if view and not accepts(views, view):
        known = _is_code(view, 3) or view in LATERALS
        raise Refused(Reason.WRONG_VIEW, f"View Position {view}" if known else "another View Position")


def check_size(height: int, width: int) -> None:
    """Judges the image's size, in pixels.

    Raises:
        Refused: too small, too large or too narrow for a chest radiograph.
    """
    shorter, longer = sorted((height, width))
    if shorter < MIN_SIDE or longer > MAX_SIDE or longer > MAX_ASPECT * shorter or height * width > MAX_PIXELS:
        raise Refused(Reason.IMPLAUSIBLE_SIZE, f"{height} x {width} pixels")


def _check_modality(header: Header) -> None:
    """By Modality, or by SOP class where there is none."""
    code = header.modality.upper()
    if (code and code not in MODALITIES) or (not code and header.sop_class and header.sop_class not in SOP_CLASSES):
        raise Refused(Reason.WRONG_MODALITY, f"Modality {code}" if _is_code(code, 2) else "neither CR nor DX")


def _is_code(text: str, length: int) -> bool:
    """Whether to repeat a header value: free text could hold anything."""
    return 0 < len(text) <= length and text.isascii() and text.isalpha()
