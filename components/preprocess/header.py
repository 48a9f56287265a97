"""What one file's header says, as far as it is read at all."""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from components.preprocess import attributes
from components.preprocess.checks import PHOTOMETRICS
from components.preprocess.elements import integer, pixel_data, text


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


def read_header(dataset: Dataset, transfer_syntax: str) -> Header:
    """Reads what is needed of a header.

    Args:
        dataset: a whole file's.
        transfer_syntax: the file's.
    """
    return Header(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        sop_class=text(dataset, "SOPClassUID"),
        modality=text(dataset, "Modality"),
        body_part=text(dataset, "BodyPartExamined"),
        view=attributes.read_view(dataset),
        photometric=text(dataset, "PhotometricInterpretation") or PHOTOMETRICS[1],
        burned_in=text(dataset, "BurnedInAnnotation"),
        transfer_syntax=transfer_syntax,
        patient_id=text(dataset, "PatientID"),
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        sex=text(dataset, "PatientSex"),
        age=text(dataset, "PatientAge"),
        birth_date=text(dataset, "PatientBirthDate"),
        study_date=text(dataset, "StudyDate"),
        manufacturer=attributes.read_manufacturer(dataset),
        synthetic=text(dataset, "SyntheticData").upper() == "YES",
        has_pixels=bool(pixel_data(dataset)),
        samples=integer(dataset, "SamplesPerPixel", 1),
        height=integer(dataset, "Rows", 0),
        width=integer(dataset, "Columns", 0),
    )
