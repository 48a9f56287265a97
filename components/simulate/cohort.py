"""The plan of a cohort, patient by patient, and how a planned image becomes a file.

A patient depends on the seed and its number alone, so that a larger cohort begins with the smaller one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from components.simulate import anatomy
from components.simulate.anatomy import Anatomy, draw_anatomy
from components.simulate.dicom import Header, Recording, draw_recording, encode, uid
from components.simulate.draws import Draws, Map
from components.simulate.exposure import Exposure, draw_exposure, radiograph
from components.simulate.findings import FINDINGS, Box, Lesion, box_of
from components.simulate.geometry import Pose

PREVALENCE = 0.31
"""Share of the patients who have a finding, each finding on its own."""
PERSISTENCE = 0.87
"""Share of a patient's images that show a finding of the patient."""
UNKNOWN = 0.03
"""Share of the labels that nobody has given: half of them blank, half -1."""
GIVEN_NAMES = ("Ada", "Bruno", "Clara", "Dmitri", "Edda", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Linus")
FIRST_DAY = date(2020, 1, 1)


@dataclass(frozen=True)
class Image:
    """What an image of a patient will be."""

    seed: int
    patient: int
    """The patient's number."""
    number: int
    """From 1 on, within the patient."""
    pose: Pose
    exposure: Exposure
    findings: frozenset[str]
    """What it shows."""
    labels: Mapping[str, str]
    """What labels.csv says, by finding: 1, 0, blank or -1."""
    header: Header
    recording: Recording

    @property
    def path(self) -> str:
        """Of its file, relative to the output folder."""
        return f"patient-{self.patient:05d}/image-{self.number}.dcm"


@dataclass(frozen=True)
class Patient:
    """A phantom and its images."""

    aspect: float
    """Width over height of the images."""
    anatomy: Anatomy
    lesions: Mapping[str, tuple[Lesion, ...]]
    """By finding: those that the patient has."""
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Person:
    """Whom the headers of a patient's images name."""

    name: str
    patient_id: str
    sex: str
    birth_date: date


def draw_patient(seed: int, number: int) -> Patient:
    """Plans a patient.

    Args:
        seed: the cohort's.
        number: the patient's, from 0 on.
    """
    draws = Draws(seed, number)
    aspect = draws.uniform(0.84, 1.04)
    person = _draw_person(draws, seed, number)
    body = draw_anatomy(draws, 1 / aspect, female=person.sex == "F")
    lesions = {name: make(draws, body) for name, make in FINDINGS.items() if draws.chance(PREVALENCE)}
    count = draws.integer(1, 3)
    return Patient(aspect, body, lesions, tuple(_draw_image(seed, number, index + 1, person, frozenset(lesions)) for index in range(count)))


def _draw_person(draws: Draws, seed: int, number: int) -> Person:
    age = draws.integer(19, 94)
    return Person(
        name=f"Phantom{number:05d}^{draws.choose(GIVEN_NAMES)}",
        patient_id=f"PHANTOM-{_digits(str(seed), 8)}-{number:05d}",
        sex=draws.choose(("F", "M")) if draws.chance(0.97) else "",
        birth_date=date(FIRST_DAY.year - age, draws.integer(1, 12), draws.integer(1, 28)),
    )


def _digits(name: str, count: int) -> str:
    """Digits that are known by a name."""
    return uid(name)[-count:]


def _draw_image(seed: int, patient: int, number: int, person: Person, has: frozenset[str]) -> Image:
    draws = Draws(seed, patient, number)
    view = "AP" if draws.chance(0.3) else "PA"
    shows = frozenset(name for name in FINDINGS if draws.chance(PERSISTENCE) and name in has)
    return Image(
        seed=seed,
        patient=patient,
        number=number,
        pose=_draw_pose(draws, view),
        exposure=draw_exposure(draws),
        findings=shows,
        labels={name: _draw_label(draws, name in shows) for name in FINDINGS},
        header=_draw_header(draws, f"{seed}/{patient}/{number}", person, view, number),
        recording=draw_recording(draws),
    )


def _draw_pose(draws: Draws, view: str) -> Pose:
    """Small differences in position; AP images, taken lying, show a higher diaphragm."""
    breath = draws.uniform(-0.03, 0.03) - (0.03 if view == "AP" else 0.0)
    shift_x, shift_y = draws.uniform(-0.035, 0.035), draws.uniform(-0.035, 0.035)
    return Pose(shift_x, shift_y, draws.uniform(0.97, 1.03), draws.uniform(-0.015, 0.015), breath)


def _draw_label(draws: Draws, shown: bool) -> str:
    if draws.chance(UNKNOWN):
        return draws.choose(("", "-1"))
    return "1" if shown else "0"


def _draw_header(draws: Draws, key: str, person: Person, view: str, number: int) -> Header:
    """One study an image, at least a month after the one before."""
    day = FIRST_DAY + timedelta(days=60 * number + draws.integer(0, 29))
    study, series, image = (uid(f"{level}/{key}") for level in ("study", "series", "image"))
    accession = f"ACC{_digits(f'accession/{key}', 10)}"
    return Header(person.name, person.patient_id, person.sex, person.birth_date, day, accession, study, series, image, view)


def render(patient: Patient, image: Image, size: int) -> tuple[Map, list[tuple[str, Box]]]:
    """Takes an image.

    Args:
        patient: whose it is.
        image: its plan.
        size: longer side, in pixels.

    Returns:
        (H, W) in [0, 1], bright = dense; and the boxes of what it shows, with the finding's name.
    """
    height, width = shape(patient, size)
    grid = image.pose.grid(height, width)
    depth = image.pose.inspiration
    total = anatomy.attenuation(patient.anatomy, grid, depth, frontal_beam=image.header.view == "AP")
    boxes = []
    for name in sorted(image.findings):
        for lesion in patient.lesions[name]:
            layer = lesion.attenuation(patient.anatomy, grid, depth)
            total = total + layer
            box = box_of(layer)
            boxes += [(name, box)] if box else []
    noise = Draws(image.seed, image.patient, image.number, 1)
    return radiograph(total, image.exposure, noise), boxes


def shape(patient: Patient, size: int) -> tuple[int, int]:
    """Height and width, in pixels, of a patient's images."""
    return (size, round(size * patient.aspect)) if patient.aspect <= 1 else (round(size / patient.aspect), size)


def take(patient: Patient, image: Image, size: int) -> tuple[bytes, list[tuple[str, Box]]]:
    """The DICOM file of an image, and the boxes of the findings that its labels name."""
    pixels, boxes = render(patient, image, size)
    known = [(name, box) for name, box in boxes if image.labels[name] == "1"]
    return encode(pixels, image.header, image.recording), known
