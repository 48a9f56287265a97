"""The attributes of a file's header that this project uses."""

from dataclasses import dataclass

from components.common.dicom.elements import Elements, integer, pair, pixel_data, text
from components.common.dicom.manufacturer import read_manufacturer
from components.common.dicom.views import read_view

PHOTOMETRICS = MONOCHROME1, MONOCHROME2 = ("MONOCHROME1", "MONOCHROME2")

_PIXEL_SHAPES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
"""Distance of rows and distance of columns, in mm (PS3.3 10.7.1.3), and their ratio, which stands in if they are missing (C.7.6.3.1.7)."""
_ROUNDING = 0.01


@dataclass(frozen=True)
class Header:
    """Attributes of one file as plain values; text is stripped, and empty where it is missing.

    The defaults describe a file that holds pixels and nothing else, such as a PNG file.
    """

    height: int
    width: int
    transfer_syntax: str  # UID of the transfer syntax, or the media type of a PNG or JPEG file
    sop_instance_uid: str = ""
    sop_class: str = ""
    modality: str = ""
    body_part: str = ""
    view: str = ""
    photometric: str = MONOCHROME2
    burned_in: str = ""
    patient_id: str = ""
    study_instance_uid: str = ""
    sex: str = ""
    age: str = ""
    birth_date: str = ""
    study_date: str = ""
    manufacturer: str = ""
    synthetic: bool = False
    has_pixels: bool = True
    samples: int = 1
    pixel_aspect: float = 1.0  # height of a pixel over its width


def read_header(elements: Elements, transfer_syntax: str) -> Header:
    """Reads the header of a DICOM file."""
    return Header(
        sop_instance_uid=text(elements, "SOPInstanceUID"),
        sop_class=text(elements, "SOPClassUID"),
        modality=text(elements, "Modality"),
        body_part=_in_utf8(text(elements, "BodyPartExamined")),
        view=read_view(elements),
        photometric=text(elements, "PhotometricInterpretation") or MONOCHROME2,
        burned_in=text(elements, "BurnedInAnnotation"),
        transfer_syntax=transfer_syntax,
        patient_id=text(elements, "PatientID"),
        study_instance_uid=text(elements, "StudyInstanceUID"),
        sex=text(elements, "PatientSex"),
        age=text(elements, "PatientAge"),
        birth_date=text(elements, "PatientBirthDate"),
        study_date=text(elements, "StudyDate"),
        manufacturer=read_manufacturer(elements),
        synthetic=text(elements, "SyntheticData").upper() == "YES",
        has_pixels=bool(pixel_data(elements)),
        samples=integer(elements, "SamplesPerPixel", 1),
        pixel_aspect=_read_pixel_aspect(elements),
        height=integer(elements, "Rows", 0),
        width=integer(elements, "Columns", 0),
    )


def _read_pixel_aspect(elements: Elements) -> float:
    """Returns the height of a pixel over its width, by the first valid attribute; 1 if there is none, or they differ by rounding only."""
    for keyword in _PIXEL_SHAPES:
        height, width = pair(elements, keyword)
        if height > 0 and width > 0:
            return height / width if abs(height / width - 1) > _ROUNDING else 1.0
    return 1.0


def _in_utf8(code: str) -> str:
    """Reads a code string as UTF-8 if it is valid UTF-8: the VR CS has no letters beyond ASCII, but files do."""
    try:
        return code if code.isascii() else code.encode("latin-1").decode()
    except UnicodeError:
        return code
