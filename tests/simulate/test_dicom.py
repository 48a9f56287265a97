import itertools
from datetime import date
from io import BytesIO

import numpy as np
import openjpeg
import pytest
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from components.simulate.dicom import BITS, INSTITUTION, MANUFACTURERS, SYNTAXES, Identity, Person, Recording, encode, store, uid
from components.simulate.draws import Draws

IDENTITY = Identity(
    person=Person(name="Phantom00007^Ada", patient_id="PHANTOM-1-00007", sex="F", birth_date=date(1950, 6, 15)),
    study_date=date(2020, 6, 14),
    accession_number="ACC0123456789",
    study_uid=uid("study"),
    series_uid=uid("series"),
    image_uid=uid("image"),
    view="AP",
)
CR = Recording("CR", 12, "MONOCHROME2", "none", "1", "0", ExplicitVRLittleEndian, MANUFACTURERS[0])
DX = Recording("DX", 12, "MONOCHROME1", "window", "1", "0", ExplicitVRLittleEndian, MANUFACTURERS[0])
DX_TYPE_1 = (  # PS3.3 C.8.11.1 to C.8.11.5
    "PresentationIntentType",
    "ImageType",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "PresentationLUTShape",
    "LossyImageCompression",
    "BurnedInAnnotation",
    "ImageLaterality",
    "AnatomicRegionSequence",
    "ImagerPixelSpacing",
    "ViewCodeSequence",
    "WindowCenter",
    "WindowWidth",
)


def _image(height=49, width=37):
    """Returns a ramp from 0 to 1 with some noise."""
    ramp = np.linspace(0, 1, height * width).reshape(height, width)
    return np.clip(ramp + 0.02 * Draws(0).noise(height, width) * (ramp > 0.05) * (ramp < 0.95), 0, 1)


def _pixels(dataset):
    if dataset.file_meta.TransferSyntaxUID == JPEG2000Lossless:  # call the codec directly, whatever plugins pydicom has
        return openjpeg.decode(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    return dataset.pixel_array


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("bits", BITS)
def test_every_syntax_holds_the_stored_pixels(syntax, bits):
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        recording = Recording("CR", bits, photometric, "none", "1", "0", syntax, MANUFACTURERS[0])
        dataset = dcmread(BytesIO(encode(_image(), IDENTITY, recording)))
        assert dataset.file_meta.TransferSyntaxUID == syntax
        assert (dataset.BitsStored, dataset.HighBit, dataset.PhotometricInterpretation) == (bits, bits - 1, photometric)
        pixels = _pixels(dataset)
        np.testing.assert_array_equal(pixels, store(_image(), recording))
        assert pixels.max() == 2**bits - 1  # either end of the ramp is white, whatever the polarity


@pytest.mark.parametrize("voi", ["none", "window", "lut"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_shown_as_the_header_says_it_is_the_image(voi, photometric):
    rescalings = [("1", "0")] if voi == "lut" else [("1", "0"), ("0.25", "-1024"), ("2", "50")]
    for bits, (slope, intercept) in itertools.product((8, 10, 12), rescalings):
        recording = Recording("CR", bits, photometric, voi, slope, intercept, ExplicitVRLittleEndian, MANUFACTURERS[0])
        dataset = dcmread(BytesIO(encode(_image(), IDENTITY, recording)))
        shown = apply_modality_lut(dataset.pixel_array, dataset)
        if voi == "none":
            shown = (shown - float(intercept)) / float(slope) / (2**bits - 1)
        else:
            low, high = (0, 65535) if voi == "lut" else (float(intercept), float(slope) * (2**bits - 1) + float(intercept))
            shown = (apply_voi_lut(shown.astype(int) if voi == "lut" else shown, dataset) - low) / (high - low)
        shown = 1 - shown if photometric == "MONOCHROME1" else shown
        # the square root is steep near 0: half a step there becomes sqrt(step / 2)
        assert np.abs(shown - _image()).max() <= (np.sqrt(0.5 / (2**bits - 1)) if voi == "lut" else 1.5 / (2**bits - 1))
        assert np.abs(shown - _image()).mean() < 1.5 / (2**bits - 1)


def test_deflated_streams_longer_than_a_block():
    recording = Recording("CR", 16, "MONOCHROME2", "none", "1", "0", DeflatedExplicitVRLittleEndian, MANUFACTURERS[0])
    image = Draws(0).field(257, 301)
    dataset = dcmread(BytesIO(encode(image, IDENTITY, recording)))
    np.testing.assert_array_equal(dataset.pixel_array, np.rint(image * 65535))


def test_codecs_compress():
    flat = np.full((128, 128), 0.25)
    sizes = {syntax: len(encode(flat, IDENTITY, Recording("CR", 12, "MONOCHROME2", "none", "1", "0", syntax, "M"))) for syntax in SYNTAXES}
    assert all(sizes[syntax] < 0.2 * sizes[ExplicitVRLittleEndian] for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_no_library_leaves_its_version(syntax):
    content = encode(_image(), IDENTITY, Recording("CR", 12, "MONOCHROME2", "none", "1", "0", syntax, "M"))
    assert b"PYDICOM" not in content.upper()
    assert b"openjpeg" not in content.lower()
    dataset = dcmread(BytesIO(content))
    assert dataset.file_meta.ImplementationVersionName == "PHANTOM_1"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID == IDENTITY.image_uid


def test_header_names_the_patient_and_says_synthetic():
    dataset = dcmread(BytesIO(encode(_image(), IDENTITY, CR)))
    assert dataset[0x0008, 0x001C].value == "YES"
    assert str(dataset.PatientName) == IDENTITY.person.name
    assert dataset.PatientAge == "069Y"  # one day before the 70th birthday
    assert dataset.PatientBirthDate == "19500615"
    assert dataset.InstitutionName == INSTITUTION
    assert (dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition, dataset.BurnedInAnnotation) == ("CR", "CHEST", "AP", "NO")
    assert dataset.SOPClassUID.name == "Computed Radiography Image Storage"


def test_dx_has_its_mandatory_attributes():
    dataset = dcmread(BytesIO(encode(_image(), IDENTITY, DX)))
    assert dataset.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
    missing = [keyword for keyword in DX_TYPE_1 if dataset.get(keyword) in (None, "")]
    assert not missing
    assert dataset.ViewCodeSequence[0].CodeMeaning == "antero-posterior"
    assert (dataset.PresentationLUTShape, dataset.PixelIntensityRelationshipSign) == ("INVERSE", 1)
