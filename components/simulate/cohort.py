"""Plans a cohort patient by patient, and turns a planned image into a file.

A patient depends on the seed and the patient's number alone, so that a larger cohort begins with the smaller one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from components.simulate import anatomy
from components.simulate.anatomy import Anatomy, draw_anatomy
from components.simulate.dicom import Identity, Person, Recording, draw_recording, encode, uid
from components.simulate.draws import Draws, Map
from components.simulate.exposure import Exposure, draw_exposure, radiograph
from components.simulate.findings import FINDINGS, Lesion, PixelBox, box_of
from components.simulate.geometry import Pose

PREVALENCE = 0.31  # probability that a patient has a finding, for each finding independently
PERSISTENCE = 0.87  # probability that an image shows a finding that the patient has
UNKNOWN = 0.03  # fraction of labels that are unknown: half of them blank, half -1
GIVEN_NAMES = ("Ada", "Bruno", "Clara", "Dmitri", "Edda", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Linus")
FIRST_DAY = date(2020, 1, 1)


@dataclass(frozen=True)
class PlannedImage:
    """An image of a patient before it is rendered."""

    seed: int
    patient: int  # its number, starting at 0
    number: int  # within the patient, starting at 1
    pose: Pose
    exposure: Exposure
    findings: frozenset[str]  # shown ones
    labels: Mapping[str, str]  # entries of labels.csv by finding: 1, 0, blank or -1
    identity: Identity
    recording: Recording

    @property
    def path(self) -> str:
        """Path of its file, relative to the output folder."""
        return f"patient-{self.patient:05d}/image-{self.number}.dcm"


@dataclass(frozen=True)
class Patient:
    """A phantom and its images."""

    aspect: float  # width over height of the images
    anatomy: Anatomy
    lesions: Mapping[str, tuple[Lesion, ...]]  # by finding; only those that the patient has
    images: tuple[PlannedImage, ...]


def draw_patient(seed: int, number: int) -> Patient:
    """Plans the patient with the given number, starting at 0."""
    draws = Draws(seed, number)
    aspect = draws.uniform(0.84, 1.04)
    person = _draw_person(draws, seed, number)
    body = draw_anatomy(draws, 1 / aspect, female=person.sex == "F")
    lesions = {name: make(draws, body) for name, make in FINDINGS.items() if draws.chance(PREVALENCE)}
    count = draws.integer(1, 3)
    images = (_draw_image(seed, number, index + 1, person, frozenset(lesions)) for index in range(count))
    return Patient(aspect, body, lesions, tuple(images))


def _draw_person(draws: Draws, seed: int, number: int) -> Person:
    age = draws.integer(19, 94)
    return Person(
        name=f"Phantom{number:05d}^{draws.choose(GIVEN_NAMES)}",
        patient_id=f"PHANTOM-{uid(str(seed))[-8:]}-{number:05d}",
        sex=draws.choose(("F", "M")) if draws.chance(0.97) else "",
        birth_date=date(FIRST_DAY.year - age, draws.integer(1, 12), draws.integer(1, 28)),
    )


def _draw_image(seed: int, patient: int, number: int, person: Person, has: frozenset[str]) -> PlannedImage:
    draws = Draws(seed, patient, number)
    view = "AP" if draws.chance(0.3) else "PA"
    shows = frozenset(name for name in FINDINGS if draws.chance(PERSISTENCE) and name in has)
    return PlannedImage(
        seed=seed,
        patient=patient,
        number=number,
        pose=_draw_pose(draws, view),
        exposure=draw_exposure(draws),
        findings=shows,
        labels={name: _draw_label(draws, name in shows) for name in FINDINGS},
        identity=_draw_identity(draws, f"{seed}/{patient}/{number}", person, view, number),
        recording=draw_recording(draws),
    )


def _draw_pose(draws: Draws, view: str) -> Pose:
    """Small differences in position; AP images, taken lying down, show a higher diaphragm."""
    breath = draws.uniform(-0.03, 0.03) - (0.03 if view == "AP" else 0.0)
    shift_x, shift_y = draws.uniform(-0.035, 0.035), draws.uniform(-0.035, 0.035)
    return Pose(shift_x, shift_y, draws.uniform(0.97, 1.03), draws.uniform(-0.015, 0.015), breath)


def _draw_label(draws: Draws, shown: bool) -> str:
    if draws.chance(UNKNOWN):
        return draws.choose(("", "-1"))
    return "1" if shown else "0"


def _draw_identity(draws: Draws, key: str, person: Person, view: str, number: int) -> Identity:
    """One study per image, at least a month after the previous one."""
    day = FIRST_DAY + timedelta(days=60 * number + draws.integer(0, 29))
    study, series, image = (uid(f"{level}/{key}") for level in ("study", "series", "image"))
    accession = f"ACC{uid(f'accession/{key}')[-10:]}"
    return Identity(person, day, accession, study, series, image, view)


def render(patient: Patient, image: PlannedImage, size: int) -> tuple[Map, list[tuple[str, PixelBox]]]:
    """Renders an image, (H, W) in [0, 1], bright = dense, and returns it with name and box of each finding that it shows."""
    height, width = shape(patient, size)
    grid = image.pose.grid(height, width)
    depth = image.pose.inspiration
    total = anatomy.attenuation(patient.anatomy, grid, depth, frontal_beam=image.identity.view == "AP")
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
    """Height and width of a patient's images in pixels."""
    return (size, round(size * patient.aspect)) if patient.aspect <= 1 else (round(size / patient.aspect), size)


def take(patient: Patient, image: PlannedImage, size: int) -> tuple[bytes, list[tuple[str, PixelBox]]]:
    """Makes the DICOM file of an image, and the boxes of the findings that its labels name."""
    pixels, boxes = render(patient, image, size)
    known = [(name, box) for name, box in boxes if image.labels[name] == "1"]
    return encode(pixels, image.identity, image.recording), known
