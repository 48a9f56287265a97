"""Writes phantoms as DICOM files: CR and DX objects in the variety that archives hold.

The bytes depend on the arguments alone: no time of day, no random UID, and no encoder whose output varies. Therefore
"deflated" files hold stored blocks, since zlib's versions compress differently, and JPEG 2000 streams lose the comment
that names the encoder's version.
"""

import logging
import struct
import uuid
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openjpeg.utils
from pydicom import dcmwrite
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from components.simulate.draws import Draws, Map

logging.getLogger("openjpeg").setLevel(logging.WARNING)  # it logs every tile

Modality = Literal["CR", "DX"]
Voi = Literal["none", "window", "lut"]
Attributes = dict[str, Any]  # values by DICOM keyword
Stored = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

UNCOMPRESSED = (uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian)
SYNTAXES = (*UNCOMPRESSED, uids.RLELossless, uids.JPEGLSLossless, uids.JPEG2000Lossless)
BITS = (8, 10, 12, 14, 16)
MANUFACTURERS = ("Umbra Imaging", "Penumbra Medical", "Lichtschatten")
INSTITUTION = "Phantom General Hospital"
VIEW_CODES = {"PA": ("272479007", "postero-anterior"), "AP": ("399348003", "antero-posterior")}
"""PS3.16 CID 4010, DX View: SNOMED CT code and meaning."""
WINDOW = (0.15, 0.75)  # black and white of a windowed image, as fractions of the stored range


@dataclass(frozen=True)
class Recording:
    """How a device writes its images."""

    modality: Modality
    bits: int
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    voi: Voi
    slope: str  # Rescale Slope: a decimal string that is exact in binary
    intercept: str
    syntax: uids.UID
    manufacturer: str

    @property
    def top(self) -> int:
        """The highest stored value."""
        return int(2**self.bits) - 1


@dataclass(frozen=True)
class Person:
    """The person that the headers of a patient's images name."""

    name: str
    patient_id: str
    sex: str
    birth_date: date


@dataclass(frozen=True)
class Identity:
    """Who was imaged and when, which must never leave preprocess."""

    person: Person
    study_date: date
    accession_number: str
    study_uid: uids.UID
    series_uid: uids.UID
    image_uid: uids.UID
    view: str  # PA or AP

    @property
    def age(self) -> int:
        """Whole years at the study."""
        birth, study = self.person.birth_date, self.study_date
        return study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))


def draw_recording(draws: Draws) -> Recording:
    """A random device. DX images for presentation have a VOI LUT or a window, and no rescaling (PS3.3 C.8.11.1 and C.8.11.3)."""
    modality: Modality = draws.choose(("CR", "DX"))
    voi: Voi = draws.choose(("window", "lut") if modality == "DX" else ("none", "window"))
    rescaled = modality == "CR" and draws.chance(0.4)
    return Recording(
        modality=modality,
        bits=draws.choose(BITS[:3] if voi == "lut" else BITS),
        photometric="MONOCHROME1" if draws.chance(0.3) else "MONOCHROME2",
        voi=voi,
        slope=draws.choose(("0.25", "0.5", "2")) if rescaled else "1",
        intercept=draws.choose(("-1024", "-100", "50")) if rescaled else "0",
        syntax=draws.choose(SYNTAXES),
        manufacturer=draws.choose(MANUFACTURERS),
    )


def uid(name: str) -> uids.UID:
    """UID derived from a name by way of a UUID (PS3.5 B.2)."""
    return uids.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'phantom:{name}').int}")


def store(image: Map, recording: Recording) -> Stored:
    """Computes the pixels (H, W), uint8 for 8 bits, else uint16, that show an image in [0, 1] when displayed as the header says."""
    shown = 1 - image if recording.photometric == "MONOCHROME1" else image
    if recording.voi == "lut":
        shown = shown * shown
    if recording.voi == "window":
        shown = WINDOW[0] + (WINDOW[1] - WINDOW[0]) * shown
    whole = np.rint(shown * recording.top)
    return whole.astype(np.uint8) if recording.bits == 8 else whole.astype(np.uint16)


def encode(image: Map, identity: Identity, recording: Recording) -> bytes:
    """Encodes an image, (H, W) in [0, 1], bright = dense, as a DICOM file."""
    pixels = store(image, recording)
    specific = _dx(identity, recording) if recording.modality == "DX" else {}
    dataset = _dataset(_common(identity, recording, pixels) | _display(recording) | specific)
    dataset.file_meta = _file_meta(dataset, recording.syntax)
    _set_pixels(dataset, pixels)
    if recording.syntax == uids.DeflatedExplicitVRLittleEndian:
        return _deflated_file(dataset)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _dataset(attributes: Attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _common(identity: Identity, recording: Recording, pixels: Stored) -> Attributes:
    person, study_date = identity.person, f"{identity.study_date:%Y%m%d}"
    spacing = f"{400 / max(pixels.shape):.6f}"  # a detector of 40 cm
    return {
        # Patient and study, PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": person.name,
        "PatientID": person.patient_id,
        "PatientBirthDate": f"{person.birth_date:%Y%m%d}",
        "PatientSex": person.sex,
        "PatientAge": f"{identity.age:03d}Y",
        "StudyInstanceUID": identity.study_uid,
        "StudyDate": study_date,
        "StudyTime": "120000",
        "StudyID": "1",
        "StudyDescription": "Chest phantom",
        "AccessionNumber": identity.accession_number,
        "ReferringPhysicianName": "",
        # Series and equipment, PS3.3 C.7.3.1, C.7.5.1 and C.8.1.1
        "Modality": recording.modality,
        "SeriesInstanceUID": identity.series_uid,
        "SeriesNumber": 1,
        "BodyPartExamined": "CHEST",
        "ViewPosition": identity.view,
        "Manufacturer": recording.manufacturer,
        "ManufacturerModelName": f"Phantom {recording.modality}",
        "InstitutionName": INSTITUTION,
        # Image, PS3.3 C.7.6.1, C.8.1.2 and C.12.1, which has Synthetic Data
        "SOPInstanceUID": identity.image_uid,
        "SyntheticData": "YES",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "InstanceNumber": 1,
        "ContentDate": study_date,
        "ContentTime": "120000",
        "PatientOrientation": ["L", "F"],
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "ImagerPixelSpacing": [spacing, spacing],
        # Pixels, PS3.3 C.7.6.3
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": recording.photometric,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": recording.bits,
        "HighBit": recording.bits - 1,
        "PixelRepresentation": 0,
    }


def _display(recording: Recording) -> Attributes:
    """Modality LUT and VOI LUT, PS3.3 C.11.1 and C.11.2, and the SOP class that has them."""
    sop_class = uids.ComputedRadiographyImageStorage if recording.modality == "CR" else uids.DigitalXRayImageStorageForPresentation
    attributes: Attributes = {"SOPClassUID": sop_class}
    if recording.modality == "DX" or recording.slope != "1":
        attributes |= {"RescaleSlope": recording.slope, "RescaleIntercept": recording.intercept, "RescaleType": "US"}
    if recording.voi == "window":
        slope, intercept = float(recording.slope), float(recording.intercept)
        black, white = (fraction * recording.top * slope + intercept for fraction in WINDOW)
        # The linear function of PS3.3 C.11.2.1.2.1 puts black and white where `store` did.
        attributes |= {"WindowCenter": f"{(black + white + 1) / 2:.4f}", "WindowWidth": f"{white - black + 1:.4f}"}
    if recording.voi == "lut":
        attributes["VOILUTSequence"] = [_root_lut(recording)]
    return attributes


def _root_lut(recording: Recording) -> Dataset:
    """Undoes the square in `store`: 16-bit entries for every stored value."""
    entries = np.rint(np.sqrt(np.arange(recording.top + 1) / recording.top) * 65535).astype("<u2")
    item = _dataset({"LUTExplanation": "Square root"})
    item.add_new("LUTDescriptor", "US", [recording.top + 1, 0, 16])
    item.add_new("LUTData", "OW", entries.tobytes())
    return item


def _dx(identity: Identity, recording: Recording) -> Attributes:
    """Attributes that PS3.3 C.8.11 asks of DX beyond CR."""
    rising = recording.photometric == "MONOCHROME2"
    view = _code(*VIEW_CODES[identity.view])
    view.ViewModifierCodeSequence = []
    return {
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1 if rising else 1,
        "PresentationLUTShape": "IDENTITY" if rising else "INVERSE",
        "ImageLaterality": "U",
        "AnatomicRegionSequence": [_code("816094009", "Chest")],
        "ViewCodeSequence": [view],
        "PositionerType": "NONE",
        "AcquisitionContextSequence": [],
        "DetectorType": "DIRECT",
    }


def _code(value: str, meaning: str) -> Dataset:
    return _dataset({"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning})  # SNOMED CT


def _file_meta(dataset: Dataset, syntax: uids.UID) -> FileMetaDataset:
    """PS3.10, 7.1. The implementation is this module, so that pydicom's version does not show."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = uid("implementation 1")
    meta.ImplementationVersionName = "PHANTOM_1"
    return meta


def _set_pixels(dataset: Dataset, pixels: Stored) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in UNCOMPRESSED:
        raw = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW"
    elif syntax == uids.JPEG2000Lossless:
        stream = openjpeg.utils.encode_array(pixels, bits_stored=dataset.BitsStored, photometric_interpretation=2, use_mct=False)
        dataset.PixelData = encapsulate([_without_comment(stream)])
        dataset["PixelData"].VR = "OB"
    else:
        plugin = "pydicom" if syntax == uids.RLELossless else "pyjpegls"
        dataset.compress(syntax, pixels, encoding_plugin=plugin, generate_instance_uid=False)


def _without_comment(stream: bytes) -> bytes:
    """Removes the COM segments of a JPEG 2000 codestream's main header (ISO/IEC 15444-1, A.9.2)."""
    kept, position = [stream[:2]], 2
    while stream[position : position + 2] != b"\xff\x90":  # SOT: the first tile part
        (length,) = struct.unpack_from(">H", stream, position + 2)
        if stream[position : position + 2] != b"\xff\x64":
            kept.append(stream[position : position + 2 + length])
        position += 2 + length
    return b"".join([*kept, stream[position:]])


def _deflated_file(dataset: Dataset) -> bytes:
    """PS3.5 A.5: everything after the file meta information is one raw deflate stream, padded to an even length."""
    head, body = DicomBytesIO(), DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, dataset.file_meta, enforce_standard=True)
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, dataset)
    stream = _stored_blocks(body.getvalue())
    return head.getvalue() + stream + b"\0" * (len(stream) % 2)


def _stored_blocks(content: bytes) -> bytes:
    """A deflate stream that does not compress (RFC 1951, 3.2.4)."""
    blocks = [content[start : start + 65535] for start in range(0, len(content), 65535)]
    heads = [struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) for block in blocks]
    return b"".join(head + block for head, block in zip(heads, blocks, strict=True))
