from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from components.simulate import anatomy, findings
from components.simulate.cohort import Patient, draw_patient, render, shape, take
from components.simulate.dicom import BITS, MANUFACTURERS, SYNTAXES
from components.simulate.draws import Draws
from components.simulate.findings import FINDINGS, Cardiomegaly, PixelBox, box_of
from components.simulate.params import Simulate

SIZE = 96


@pytest.fixture(scope="module")
def default() -> list[Patient]:
    """The plan of the default cohort."""
    return [draw_patient(Simulate().seed, number) for number in range(Simulate().patients)]


def test_default_cohort_has_every_variant(default):
    recordings = [image.recording for patient in default for image in patient.images]
    assert {(r.syntax, r.bits) for r in recordings} == {(syntax, bits) for syntax in SYNTAXES for bits in BITS}
    assert {(r.photometric, r.voi) for r in recordings} == {(f"MONOCHROME{n}", voi) for n in (1, 2) for voi in ("none", "window", "lut")}
    assert {r.modality for r in recordings} == {"CR", "DX"}
    assert {r.manufacturer for r in recordings} == set(MANUFACTURERS)
    assert len({(r.slope, r.intercept) for r in recordings}) == 10
    assert {image.identity.view for patient in default for image in patient.images} == {"PA", "AP"}
    assert {image.identity.person.sex for patient in default for image in patient.images} == {"F", "M", ""}
    assert {len(patient.images) for patient in default} == {1, 2, 3}
    assert len({shape(patient, 160) for patient in default}) > 20


def test_default_cohort_has_findings_to_learn_from(default):
    images = [image for patient in default for image in patient.images]
    assert 440 <= len(images) <= 520
    for finding in FINDINGS:
        labels = Counter(image.labels[finding] for image in images)
        assert 0.2 < labels["1"] / len(images) < 0.33
        assert labels[""] and labels["-1"] and 0.01 < (labels[""] + labels["-1"]) / len(images) < 0.06


def test_findings_mostly_stay_with_the_patient(default):
    shown = [finding in image.findings for patient in default for finding in patient.lesions for image in patient.images]
    assert 0.8 < np.mean(shown) < 0.95
    for patient in default:
        assert all(image.findings <= set(patient.lesions) for image in patient.images)


def test_known_labels_are_what_the_image_shows(default):
    for image in (image for patient in default for image in patient.images):
        for finding, label in image.labels.items():
            assert label in ("", "-1", "1" if finding in image.findings else "0")


def test_identifiers_are_unique(default):
    headers = [image.identity for patient in default for image in patient.images]
    for field in ("image_uid", "series_uid", "study_uid", "accession_number"):
        assert len({getattr(header, field) for header in headers}) == len(headers)
    assert len({header.person.patient_id for header in headers}) == len({header.person.name for header in headers}) == len(default)
    assert all(len(header.accession_number) <= 16 and len(header.person.patient_id) <= 64 for header in headers)


def test_another_seed_is_another_cohort():
    one, other = draw_patient(0, 3), draw_patient(1, 3)
    assert one.images[0].identity.person.patient_id != other.images[0].identity.person.patient_id
    assert one.anatomy.half_width != other.anatomy.half_width


@pytest.mark.parametrize("finding", FINDINGS)
def test_boxes_hold_what_a_finding_changes(default, finding):
    for patient, image in _first_with(default, finding, 6):
        height, width = shape(patient, SIZE)
        with_it, boxes = render(patient, image, SIZE)
        without, _ = render(patient, replace(image, findings=image.findings - {finding}), SIZE)
        change = np.abs(with_it - without)
        boxed = np.zeros((height, width), bool)
        for box in (box for name, box in boxes if name == finding):
            assert box.x >= 0 and box.y >= 0 and box.x + box.width <= width and box.y + box.height <= height
            boxed[box.y : box.y + box.height, box.x : box.x + box.width] = True
        assert change[boxed].mean() > 4 * change[~boxed].mean()
        strongest = change > 0.3 * change.max()
        assert boxed[strongest].mean() > 0.97
        rows, columns = np.nonzero(strongest)
        assert np.ptp(rows) + np.ptp(columns) > 0.6 * (np.ptp(np.nonzero(boxed)[0]) + np.ptp(np.nonzero(boxed)[1]))


def test_boxes_and_labels_agree(default):
    seen = Counter()
    planned = [(patient, image) for patient in default[:12] for image in patient.images]
    for patient, image in planned:
        _, boxes = take(patient, image, 64)
        assert {name for name, _ in boxes} == {name for name, label in image.labels.items() if label == "1"}
        seen.update(name for name, _ in boxes)
    assert set(seen) == set(FINDINGS)


def test_unknown_findings_have_no_box(default):
    hidden = [
        (patient, image, finding)
        for patient in default
        for image in patient.images
        for finding in image.findings
        if image.labels[finding] in ("", "-1")
    ]
    patient, image, finding = hidden[0]
    assert finding in {name for name, _ in render(patient, image, 64)[1]}
    assert finding not in {name for name, _ in take(patient, image, 64)[1]}


def test_box_is_tight():
    layer = np.zeros((20, 30))
    layer[4:9, 11] = findings.VISIBLE
    layer[6, 7:15] = 1.0
    layer[15, 15] = findings.VISIBLE / 2
    assert box_of(layer) == PixelBox(x=7, y=4, width=8, height=5)
    assert box_of(np.zeros((5, 5))) is None


def test_cardiomegaly_is_a_heart_wider_than_half_the_chest(default):
    for patient in default:
        assert patient.anatomy.heart.radius_x < 0.5 * patient.anatomy.half_width
        for lesion in patient.lesions.get("Cardiomegaly", ()):
            assert isinstance(lesion, Cardiomegaly)
            assert lesion.heart.radius_x > 0.5 * patient.anatomy.half_width


def test_lungs_are_darker_than_the_heart_and_the_abdomen(default):
    for patient in default[:10]:
        image = replace(patient.images[0], findings=frozenset())
        pixels, _ = render(patient, image, SIZE)
        height, width = shape(patient, SIZE)
        grid = image.pose.grid(height, width)
        depth = image.pose.inspiration
        lungs = sum(patient.anatomy.lung(grid, side, depth) for side in (anatomy.LEFT, anatomy.RIGHT)) > 0.9
        heart = patient.anatomy.heart.attenuation(grid) > 0.7
        below = grid.y > patient.anatomy.floor(anatomy.LEFT, depth) + 0.35
        middle = np.abs(grid.x) < 0.4
        assert np.median(pixels[lungs & ~heart]) + 0.2 < np.median(pixels[heart])
        assert np.median(pixels[lungs & ~heart]) + 0.3 < np.median(pixels[below & middle])
        assert 0.15 < lungs.mean() < 0.5


def test_images_of_a_patient_share_the_anatomy_but_not_the_noise():
    patient = next(p for p in (draw_patient(0, number) for number in range(50)) if len(p.images) > 1)
    first, second = (replace(image, findings=frozenset()) for image in patient.images[:2])
    posed = replace(second, pose=first.pose, exposure=first.exposure, identity=first.identity)
    a, b = render(patient, first, 64)[0], render(patient, posed, 64)[0]
    assert 0 < np.abs(a - b).max() < 0.1
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def _first_with(patients, finding, count):
    """Returns the first planned images that show a finding, with their patients."""
    found = [(patient, image) for patient in patients for image in patient.images if finding in image.findings]
    assert len(found) >= count
    return found[:count]


def test_every_finding_can_be_drawn_for_every_body():
    for number in range(30):
        draws = Draws(7, number)
        body = anatomy.draw_anatomy(draws, draws.uniform(0.95, 1.2), female=False)
        grid = draw_patient(0, 0).images[0].pose.grid(64, 60)
        for make in FINDINGS.values():
            assert all(box_of(lesion.attenuation(body, grid, 0.0)) for lesion in make(draws, body))
