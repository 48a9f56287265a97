"""Checks that a header and an image size are those of a frontal chest radiograph.

A missing value is accepted, a wrong one is not: many hospital files lack Body Part Examined or View Position, and public
data sets wrap their images as Secondary Capture objects with Modality CR or DX.
"""

import unicodedata

from components.common.dicom.header import PHOTOMETRICS, Header
from components.common.dicom.refusal import Refused
from components.common.dicom.views import LATERALS, is_accepted
from components.common.formats.quarantine import Reason

MODALITIES = ("CR", "DX")
SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, and its multi-frame grayscale kinds
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
)
CHEST = (
    "CHEST", "THORAX", "LUNG", "PULM", "CXR", "TORAX", "TORACE", "TORAKS", "CAGETHORACIQUE", "GABBIATORACICA", "CAJATORACICA", "POUMON",
    "POLMON", "PULMAO", "PECHO", "BRUSTKORB", "KLATKAPIERSIOWA", "HRUDNIK", "胸部",
)  # fmt: skip
"""Body Part Examined means the chest if it contains one of these, whatever its case, accents and spaces. THORACIC alone may be a spine."""
NO_BODY_PART = ("", "UNKNOWN", "UNSPECIFIED", "OTHER", "DEFAULT", "NONE", "NA")  # placeholders that devices fill in
MIN_SIDE = 32  # minimum length of the shorter side, in pixels
MAX_SIDE = 10_000  # maximum length of the longer side, in pixels; the largest detectors (43 cm at 0.1 mm) have 4,300
MAX_ASPECT = 4.0  # maximum ratio of the longer to the shorter side; a chest radiograph is at most 2
MAX_PIXELS = 50_000_000  # larger images are not decoded, which bounds the memory that one file can take


def check_header(header: Header, views: tuple[str, ...], view: str, body_parts: tuple[str, ...]) -> None:
    """Checks everything but the pixels; raises Refused with the first reason that applies.

    `views` are the accepted View Positions, `view` is the canonical one of the file, empty if unknown; `body_parts` are names of the
    chest besides CHEST.
    """
    if not header.has_pixels:
        raise Refused(Reason.NO_PIXELS)
    modality = header.modality.upper()
    if not (modality in MODALITIES if modality else header.sop_class in ("", *SOP_CLASSES)):
        raise Refused(Reason.WRONG_MODALITY, f"Modality {modality}" if _is_code(modality, 2) else "neither CR nor DX")
    body_part = _letters(header.body_part)
    if body_part not in NO_BODY_PART and not any(name in body_part for name in (*CHEST, *map(_letters, body_parts))):
        raise Refused(Reason.WRONG_BODY_PART, "Body Part Examined is not the chest")
    if view and not is_accepted(view, views):
        known = _is_code(view, 3) or view in LATERALS
        raise Refused(Reason.WRONG_VIEW, f"View Position {view}" if known else "another View Position")
    if header.samples != 1:
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, f"{header.samples} samples per pixel")
    if header.photometric not in PHOTOMETRICS:
        raise Refused(Reason.UNSUPPORTED_PHOTOMETRIC, "neither MONOCHROME1 nor MONOCHROME2")
    if header.burned_in.upper() == "YES":
        raise Refused(Reason.BURNED_IN_TEXT, "Burned In Annotation is YES")


def check_size(height: int, width: int, pixel_aspect: float = 1.0) -> None:
    """Raises Refused if an image, in pixels of this height over width, is too small, too large or too narrow for a chest radiograph."""
    shorter, longer = sorted((height, width))
    narrowness = max(height * pixel_aspect / width, width / (height * pixel_aspect)) if shorter else MAX_ASPECT
    if shorter < MIN_SIDE or longer > MAX_SIDE or narrowness > MAX_ASPECT or height * width > MAX_PIXELS:
        shape = "" if pixel_aspect == 1 else f" with a height of {pixel_aspect:.3g} widths"
        raise Refused(Reason.IMPLAUSIBLE_SIZE, f"{height} x {width} pixels{shape}")


def check_decodable_size(height: int, width: int) -> None:
    """Raises Refused if a frame has more than MAX_PIXELS."""
    if height * width > MAX_PIXELS:
        raise Refused(Reason.IMPLAUSIBLE_SIZE, f"{height} x {width} pixels, not decoded")


def _letters(text: str) -> str:
    """Returns letters and digits in upper case and without accents."""
    return "".join(character for character in unicodedata.normalize("NFKD", text.upper()) if character.isalnum())


def _is_code(text: str, length: int) -> bool:
    """Whether a header value is short enough to be quoted: free text could identify a patient."""
    return 0 < len(text) <= length and text.isascii() and text.isalpha()
