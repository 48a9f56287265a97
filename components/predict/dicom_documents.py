"""The results of one image as DICOM objects that reference it: a structured report and, for boxes, a presentation state.

The report follows TID 1500 (PS3.16): a measurement group per finding, with its probability as Certainty of Finding, and one per box, with
its outline in pixels of the image. Identifiers are derived from those of the image and the model, so that the same results have the same.
"""

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from highdicom import pr, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.content import PresentationLUTTransformation
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM

from components.common.dicom.header import MONOCHROME1, Header
from components.predict.finding_codes import PRIVATE, code_of

# It quotes header values in its log.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)

MANUFACTURER = "cxr-mlops"
SERIES_NUMBERS = {"SR": 9901, "PR": 9902}  # high enough for the end of the list in a viewer
WARNING = "For research. Not a medical device."
_EMPTY = ("PatientID", "PatientName", "PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName")
"""Attributes of type 2 (PS3.3 C.7.1.1 and C.7.2.1) that a file may lack, apart from dates and times."""
_DATES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_SEXES = ("", "M", "F", "O")
_WINDOW = ("WindowCenter", "WindowWidth")
_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7."  # begins the SOP classes of multi-frame secondary capture


class Model(NamedTuple):
    """What a report says about the model."""

    name: str
    version: str
    sha256: str  # of its weights
    threshold: float | None  # lowest score of a box that is reported


class Mark(NamedTuple):
    """A box around a finding, in pixels of the image file, origin at the top left corner of the top left pixel."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float

    def outline(self) -> Any:
        """Returns the closed outline, (5, 2): column and row."""
        left, top, right, bottom = self[2:]
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])


class Results(NamedTuple):
    """The results of one image."""

    probabilities: dict[str, float]  # by finding
    marks: dict[str, list[Mark]]  # by label, also of labels without a box


def complete(image: Dataset) -> None:
    """Fills in what highdicom needs and a file may lack: missing or impossible values of the patient and the study become empty."""
    for keyword in _EMPTY:
        if keyword not in image:
            setattr(image, keyword, "")
    if str(image.PatientSex) not in _SEXES:
        image.PatientSex = ""
    for keyword, parse in _DATES.items():
        valid = False
        with suppress(ValueError, TypeError):
            valid = parse(image.get(keyword)) is not None
        if not valid:
            setattr(image, keyword, "")
    # highdicom takes a lookup table or a window, which are alternatives (PS3.3 C.11.2.1), and no half of a window.
    if "VOILUTSequence" in image or not all(image.get(keyword) for keyword in _WINDOW):
        for keyword in _WINDOW:
            image.pop(keyword, None)
    if str(image.SOPClassUID).startswith(_MULTI_FRAME) and "SharedFunctionalGroupsSequence" not in image:
        image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [Dataset()], []


def uid(*names: str) -> str:
    """Derives a UID from names, by way of a UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(('cxr-mlops', *names))).int}"


def uid_of(modality: str, image_uid: str, model: Model) -> str:
    """Returns the SOPInstanceUID of the SR or PR object of a model for an image."""
    return uid(modality, image_uid, *_identity(model))


def structured_report(image: Dataset, results: Results, model: Model) -> Dataset:
    """Makes the report of an image that is `complete`: Comprehensive 3D SR, as the IHE profile AI Results asks for."""
    groups = [_probability(image, finding, value, model) for finding, value in results.probabilities.items()]
    for label, marks in results.marks.items():
        groups.append(_count(image, label, len(marks), model))
        groups += [_region(image, number, mark, model) for number, mark in enumerate(marks, 1)]
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid(*_identity(model)), name=model.name, manufacturer_name=MANUFACTURER, model_name=model.name, serial_number=model.sha256[:16]
    )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, observer)),
        procedure_reported=codes.LN.XRUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    labels = (*results.probabilities, *results.marks)
    return sr.Comprehensive3DSR(
        evidence=[image], content=content[0], is_complete=True, coding_schemes=_schemes(labels), **_common("SR", image, model)
    )


def presentation_state(image: Dataset, marks: Sequence[Mark], model: Model, header: Header) -> Dataset:
    """Makes a presentation state that shows the image as its file asks for, with boxes and their scores."""
    layer = pr.GraphicLayer("BOXES", order=1, description=WARNING)
    units, corner = pr.AnnotationUnitsValues.PIXEL, pr.GraphicTypeValues.POLYLINE
    annotation = pr.GraphicAnnotation(
        [image],
        layer,
        graphic_objects=[pr.GraphicObject(corner, mark.outline(), units) for mark in marks],
        text_objects=[
            pr.TextObject(f"{_text(mark.label)} {mark.score:.2f}", units, anchor_point=(mark.left, mark.top), anchor_point_visible=False)
            for mark in marks
        ],
    )
    made = pr.GrayscaleSoftcopyPresentationState(
        [image],
        content_label="AI_BOXES",
        content_description=_text(f"{WARNING} {model.name} {model.version}"),
        graphic_layers=[layer],
        graphic_annotations=[annotation],
        presentation_lut_transformation=PresentationLUTTransformation("INVERSE" if header.photometric == MONOCHROME1 else "IDENTITY"),
        **_common("PR", image, model),
    )
    made.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio = [round(1000 * header.pixel_aspect), 1000]
    return made


def _probability(image: Dataset, finding: str, value: float, model: Model) -> Any:
    return sr.MeasurementsAndQualitativeEvaluations(
        measurements=[_certainty(value)], source_images=[_source(image)], **_group(image, finding, finding, model)
    )


def _count(image: Dataset, label: str, count: int, model: Model) -> Any:
    """States the number of boxes, so that an image without one is reported as well."""
    number = sr.Measurement(Code("246206008", "SCT", "Number of lesions"), count, Code("1", "UCUM", "no units"))
    return sr.MeasurementsAndQualitativeEvaluations(
        measurements=[number], source_images=[_source(image)], **_group(image, label, label, model)
    )


def _region(image: Dataset, number: int, mark: Mark, model: Model) -> Any:
    region = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, mark.outline(), sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region, measurements=[_certainty(mark.score)], **_group(image, mark.label, f"{mark.label} {number}", model)
    )


def _certainty(value: float) -> sr.Measurement:
    return sr.Measurement(codes.DCM.CertaintyOfFinding, round(100 * value, 2), codes.UCUM.Percent)


def _source(image: Dataset) -> sr.SourceImageForMeasurementGroup:
    return sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)


def _group(image: Dataset, label: str, name: str, model: Model) -> dict[str, Any]:
    """Returns what all measurement groups have: identifiers, the finding, and the algorithm (TID 4019)."""
    parameters = [f"SHA-256 of the weights {model.sha256}", WARNING]
    if model.threshold is not None:
        parameters.append(f"Boxes with a score of at least {model.threshold:.4g}; scores of boxes are not calibrated")
    return {
        "tracking_identifier": sr.TrackingIdentifier(uid(image.SOPInstanceUID, name, *_identity(model)), _text(name)),
        "finding_type": code_of(label),
        "algorithm_id": sr.AlgorithmIdentification(model.name, model.version, parameters),
    }


def _common(modality: str, image: Dataset, model: Model) -> dict[str, Any]:
    """Returns the arguments that both kinds of objects take: identifiers, device, and that it is research."""
    number = image.get("InstanceNumber")
    return {
        "series_instance_uid": uid(modality, image.StudyInstanceUID, *_identity(model)),
        "series_number": SERIES_NUMBERS[modality],
        "sop_instance_uid": uid_of(modality, image.SOPInstanceUID, model),
        "instance_number": number if isinstance(number, int) and number > 0 else 1,
        "series_description": _text(f"RESEARCH {model.name} {model.version}"),
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": _text(model.name),
        "software_versions": _text(model.version),
        "device_serial_number": model.sha256[:16],
        "content_qualification": "RESEARCH",
        "specific_character_set": "ISO_IR 192",
    }


def _schemes(labels: Sequence[str]) -> list[CodingSchemeIdentificationItem] | None:
    if not any(code_of(label).scheme_designator == PRIVATE for label in labels):
        return None
    return [CodingSchemeIdentificationItem(PRIVATE, name="Names of findings as in the labels that the model was trained with")]


def _identity(model: Model) -> tuple[str, str, str]:
    return model.name, model.version, model.sha256


def _text(value: str) -> str:
    """Returns a text that fits an attribute of VR LO."""
    return " ".join(value.replace("\\", "/").split())[:64].strip()
