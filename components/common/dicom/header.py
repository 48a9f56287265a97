"""What one file's header says, as far as it is read at all."""

from dataclasses import dataclass

from components.common.dicom import views
from components.common.dicom.elements import Elements, integer, pixel_data, text

PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class Header:
    """What one file's header says, as plain values; text is stripped, and empty where it is missing."""

    sop_instance_uid: str
    sop_class: str
    modality: str
    body_part: str
    view: str
    photometric: str
    burned_in: str
    transfer_syntax: str
    patient_id: str
    study_instance_uid: str
    sex: str
    age: str
    birth_date: str
    study_date: str
    manufacturer: str
    synthetic: bool
    has_pixels: bool
    samples: int
    height: int
    width: int


def read_header(elements: Elements, transfer_syntax: str) -> Header:
    """Reads what is needed of a header.

    Args:
        elements: a whole file's.
        transfer_syntax: the file's.
    """
    return Header(
        sop_instance_uid=text(elements, "SOPInstanceUID"),
        sop_class=text(elements, "SOPClassUID"),
        modality=text(elements, "Modality"),
        body_part=text(elements, "BodyPartExamined"),
        view=views.read_view(elements),
        photometric=text(elements, "PhotometricInterpretation") or PHOTOMETRICS[1],
        burned_in=text(elements, "BurnedInAnnotation"),
        transfer_syntax=transfer_syntax,
        patient_id=text(elements, "PatientID"),
        study_instance_uid=text(elements, "StudyInstanceUID"),
        sex=text(elements, "PatientSex"),
        age=text(elements, "PatientAge"),
        birth_date=text(elements, "PatientBirthDate"),
        study_date=text(elements, "StudyDate"),
        manufacturer=views.read_manufacturer(elements),
        synthetic=text(elements, "SyntheticData").upper() == "YES",
        has_pixels=bool(pixel_data(elements)),
        samples=integer(elements, "SamplesPerPixel", 1),
        height=integer(elements, "Rows", 0),
        width=integer(elements, "Columns", 0),
    )
