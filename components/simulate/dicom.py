"""An image and its header as the bytes of a DICOM file: CR and DX objects, the variety that archives hold.

The bytes depend on nothing but the arguments: no time of day, no random UID, and no encoder whose output varies. Hence
"deflated" files hold stored blocks, since zlib's versions compress differently, and JPEG 2000 streams lose the comment
with their encoder's version.
"""

import logging
import struct
import uuid
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
import openjpeg.utils
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from components.simulate.draws import Draws, Map

logging.getLogger("openjpeg").setLevel(logging.WARNING)  # it reports every tile

Modality = Literal["CR", "DX"]
Voi = Literal["none", "window", "lut"]
Stored = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
BITS = (8, 10, 12, 14, 16)
MANUFACTURERS = ("Umbra Imaging", "Penumbra Medical", "Lichtschatten")
INSTITUTION = "Phantom General Hospital"
VIEW_CODES = {"PA": ("272479007", "postero-anterior"), "AP": ("399348003", "antero-posterior")}
"""PS3.16 CID 4010, DX View: SNOMED CT code and meaning."""
WINDOW = (0.15, 0.75)
"""Shares of the stored range that a windowed image's black and white stand at."""


@dataclass(frozen=True)
class Recording:
    """How a device writes its images."""

    modality: Modality
    bits: int
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    voi: Voi
    slope: str
    """Rescale Slope, a decimal string that is exact in binary."""
    intercept: str
    """Rescale Intercept."""
    syntax: UID
    """Transfer syntax."""
    manufacturer: str


@dataclass(frozen=True)
class Header:
    """Who and when: what must never leave preprocess."""

    name: str
    patient_id: str
    sex: str
    birth_date: date
    study_date: date
    accession_number: str
    study_uid: UID
    series_uid: UID
    image_uid: UID
    view: str
    """PA or AP."""


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


def uid(name: str) -> UID:
    """A UID that is known by a name, derived from a UUID (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'phantom:{name}').int}")


IMPLEMENTATION = uid("implementation 1")


def store(image: Map, recording: Recording) -> Stored:
    """The pixels that, shown as the header says, are the image.

    Args:
        image: (H, W) in [0, 1], bright = dense.
        recording: how the device writes.

    Returns:
        (H, W), uint8 for 8 bits, else uint16.
    """
    shown = 1 - image if recording.photometric == "MONOCHROME1" else image
    if recording.voi == "lut":
        shown = shown * shown
    if recording.voi == "window":
        shown = WINDOW[0] + (WINDOW[1] - WINDOW[0]) * shown
    whole = np.rint(shown * _top(recording))
    return whole.astype(np.uint8) if recording.bits == 8 else whole.astype(np.uint16)


def encode(image: Map, header: Header, recording: Recording) -> bytes:
    """The DICOM file of an image.

    Args:
        image: (H, W) in [0, 1], bright = dense.
        header: who and when.
        recording: how the device writes.
    """
    pixels = store(image, recording)
    dataset = Dataset()
    dataset.update(_patient_and_study(header))
    dataset.update(_series_and_equipment(header, recording))
    dataset.update(_general_image(header, max(pixels.shape)))
    dataset.update(_pixel_description(pixels, recording))
    dataset.update(_display(recording))
    if recording.modality == "DX":
        dataset.update(_dx(header, recording))
    dataset.file_meta = _file_meta(dataset, recording.syntax)
    _set_pixels(dataset, pixels)
    return _file_bytes(dataset)


def _top(recording: Recording) -> int:
    return int(2**recording.bits) - 1


def _patient_and_study(header: Header) -> Dataset:
    """PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = header.name
    dataset.PatientID = header.patient_id
    dataset.PatientBirthDate = _dicom_date(header.birth_date)
    dataset.PatientSex = header.sex
    dataset.PatientAge = f"{_age(header):03d}Y"
    dataset.StudyInstanceUID = header.study_uid
    dataset.StudyDate = _dicom_date(header.study_date)
    dataset.StudyTime = "120000"
    dataset.StudyID = "1"
    dataset.StudyDescription = "Chest phantom"
    dataset.AccessionNumber = header.accession_number
    dataset.ReferringPhysicianName = ""
    return dataset


def _dicom_date(day: date) -> str:
    return f"{day.year:04d}{day.month:02d}{day.day:02d}"


def _age(header: Header) -> int:
    """Whole years at the study."""
    birth, study = header.birth_date, header.study_date
    return study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))


def _series_and_equipment(header: Header, recording: Recording) -> Dataset:
    """PS3.3 C.7.3.1, C.7.5.1 and C.8.1.1."""
    dataset = Dataset()
    dataset.Modality = recording.modality
    dataset.SeriesInstanceUID = header.series_uid
    dataset.SeriesNumber = 1
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = header.view
    dataset.Manufacturer = recording.manufacturer
    dataset.ManufacturerModelName = f"Phantom {recording.modality}"
    dataset.InstitutionName = INSTITUTION
    return dataset


def _general_image(header: Header, longer_side: int) -> Dataset:
    """PS3.3 C.7.6.1, C.8.1.2 and C.12.1, which has Synthetic Data."""
    dataset = Dataset()
    dataset.SOPInstanceUID = header.image_uid
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.InstanceNumber = 1
    dataset.ContentDate = _dicom_date(header.study_date)
    dataset.ContentTime = "120000"
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    spacing = f"{400 / longer_side:.6f}"  # a detector of 40 cm
    dataset.ImagerPixelSpacing = [spacing, spacing]
    return dataset


def _pixel_description(pixels: Stored, recording: Recording) -> Dataset:
    """PS3.3 C.7.6.3."""
    dataset = Dataset()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = recording.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = recording.bits
    dataset.HighBit = recording.bits - 1
    dataset.PixelRepresentation = 0
    return dataset


def _display(recording: Recording) -> Dataset:
    """Modality LUT and VOI LUT, PS3.3 C.11.1 and C.11.2, and the SOP class that has them."""
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage if recording.modality == "CR" else DigitalXRayImageStorageForPresentation
    if recording.modality == "DX" or recording.slope != "1":
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = recording.slope, recording.intercept, "US"
    if recording.voi == "window":
        dataset.WindowCenter, dataset.WindowWidth = _window(recording)
    if recording.voi == "lut":
        dataset.VOILUTSequence = Sequence([_root_lut(recording)])
    return dataset


def _window(recording: Recording) -> tuple[str, str]:
    """Center and width that put black and white where `store` did: the linear function of PS3.3 C.11.2.1.2.1."""
    slope, intercept = float(recording.slope), float(recording.intercept)
    black, white = (share * _top(recording) * slope + intercept for share in WINDOW)
    return f"{(black + white + 1) / 2:.4f}", f"{white - black + 1:.4f}"


def _root_lut(recording: Recording) -> Dataset:
    """Undoes the square in `store`: 16-bit entries for every stored value."""
    top = _top(recording)
    entries = np.rint(np.sqrt(np.arange(top + 1) / top) * 65535).astype("<u2")
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [top + 1, 0, 16])
    item.add_new("LUTData", "OW", entries.tobytes())
    item.LUTExplanation = "Square root"
    return item


def _dx(header: Header, recording: Recording) -> Dataset:
    """What PS3.3 C.8.11 asks of DX beyond CR."""
    dataset = Dataset()
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1 if recording.photometric == "MONOCHROME2" else 1
    dataset.PresentationLUTShape = "IDENTITY" if recording.photometric == "MONOCHROME2" else "INVERSE"
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = Sequence([_code("816094009", "Chest")])
    dataset.ViewCodeSequence = Sequence([_code(*VIEW_CODES[header.view])])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
    dataset.PositionerType = "NONE"
    dataset.AcquisitionContextSequence = Sequence()
    dataset.DetectorType = "DIRECT"
    return dataset


def _code(value: str, meaning: str) -> Dataset:
    """A SNOMED CT code."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _file_meta(dataset: Dataset, syntax: UID) -> FileMetaDataset:
    """PS3.10, 7.1. The implementation is this module, so that pydicom's version does not show."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = "PHANTOM_1"
    return meta


def _set_pixels(dataset: Dataset, pixels: Stored) -> None:
    """Puts the pixels in, as the transfer syntax wants them."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == JPEG2000Lossless:
        stream = openjpeg.utils.encode_array(pixels, bits_stored=dataset.BitsStored, photometric_interpretation=2, use_mct=False)
        dataset.PixelData = encapsulate([_without_comment(stream)])
        dataset["PixelData"].VR = "OB"
        return
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        plugin = "pydicom" if syntax == RLELossless else "pyjpegls"
        dataset.compress(syntax, pixels, encoding_plugin=plugin, generate_instance_uid=False)
        return
    raw = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW"


def _without_comment(stream: bytes) -> bytes:
    """A JPEG 2000 codestream without the COM segments of its main header (ISO/IEC 15444-1, A.9.2)."""
    kept, position = [stream[:2]], 2
    while stream[position : position + 2] != b"\xff\x90":  # SOT: the first tile part
        (length,) = struct.unpack_from(">H", stream, position + 2)
        if stream[position : position + 2] != b"\xff\x64":
            kept.append(stream[position : position + 2 + length])
        position += 2 + length
    return b"".join([*kept, stream[position:]])


def _file_bytes(dataset: Dataset) -> bytes:
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        return _deflated_bytes(dataset)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _deflated_bytes(dataset: Dataset) -> bytes:
    """PS3.5 A.5: everything after the file meta information as one raw deflate stream, padded to an even length."""
    head, body = DicomBytesIO(), DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, dataset.file_meta, enforce_standard=True)
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, dataset)
    stream = _stored_blocks(body.getvalue())
    return head.getvalue() + stream + b"\0" * (len(stream) % 2)


def _stored_blocks(content: bytes) -> bytes:
    """A deflate stream that does not compress (RFC 1951, 3.2.4)."""
    starts = range(0, len(content), 65535)
    blocks = []
    for start in starts:
        block = content[start : start + 65535]
        blocks.append(struct.pack("<BHH", start == starts[-1], len(block), len(block) ^ 0xFFFF) + block)
    return b"".join(blocks)
