"""Writes a cohort of phantoms: DICOM files, labels.csv and boxes.csv."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from components.common.errors import UserError
from components.common.formats.labels import BOX_COLUMNS, BOXES, IMAGE, LABELS, to_csv
from components.common.runs import storage
from components.common.runs.work import is_fixed
from components.simulate.cohort import Patient, draw_patient, take
from components.simulate.findings import FINDINGS
from components.simulate.params import Simulate

log = logging.getLogger(__name__)


def run(*, out: str, params: Simulate) -> None:
    """Makes a cohort in a folder or at an s3:// prefix, unless it is there; raises UserError if `out` holds anything else."""
    patients = [draw_patient(params.seed, number) for number in range(params.patients)]
    found = _check_names(out, _names(patients))
    if found or is_fixed(out):
        _write(patients, params.size, out, found, out)
    else:
        _write_folder(patients, params.size, Path(out))
    images = sum(len(patient.images) for patient in patients)
    log.info("simulate: %d images of %d patients %s %s", images, len(patients), "were already in" if LABELS in found else "in", out)


def _names(patients: list[Patient]) -> list[str]:
    """All files of the cohort, labels.csv last: on S3 and in a mounted folder it marks a complete cohort."""
    return [*(image.path for patient in patients for image in patient.images), BOXES, LABELS]


def _check_names(out: str, expected: list[str]) -> frozenset[str]:
    """Lists `out`, which must hold all files of this cohort, or none; or some, where writing file by file was interrupted."""
    if not storage.is_s3(out) and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out}: is a file; --out must be a folder")
    found = frozenset() if storage.is_empty(out) else frozenset(entry.path for entry in storage.listing(out))
    if foreign := sorted(found - set(expected)):
        raise _refusal(out, f"{foreign[0]} is not part of it")
    missing = [name for name in expected if name not in found]
    if missing and found and not (is_fixed(out) and LABELS in missing):
        raise _refusal(out, f"{missing[0]} is missing")
    return found


def _refusal(out: str, difference: str) -> UserError:
    return UserError(f"{out}: holds something other than this cohort ({difference}); move it away or choose another --out")


def _write_folder(patients: list[Patient], size: int, out: Path) -> None:
    """Writes beside `out` and renames at the end, so that an interrupted run leaves no partial cohort."""
    partial = Path(f"{out}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            work = Path(scratch, "cohort")
            _write(patients, size, str(out), frozenset(), str(work))
            work.rename(out)  # fails if somebody has put files there meanwhile
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    finally:
        with suppress(OSError):  # not there, or it holds the unfinished cohort of another process
            partial.rmdir()


def _write(patients: list[Patient], size: int, out: str, found: frozenset[str], target: str) -> None:
    """Makes every file; compares it with the one in `out` if it is among `found`, else writes it to `target`."""
    for name, content in _files(patients, size):
        if name not in found:
            storage.write(storage.join(target, name), content)
        elif storage.read(storage.join(out, name)) != content:
            raise _refusal(out, f"{name} differs")


def _files(patients: list[Patient], size: int) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of all files, in the order of `_names`."""
    labels = [[IMAGE, *FINDINGS]]
    boxes = [[*BOX_COLUMNS]]
    planned = [(patient, image) for patient in patients for image in patient.images]
    for patient, image in tqdm(planned, "simulate", unit="image", disable=None):
        content, marked = take(patient, image, size)
        uid = image.identity.image_uid
        labels.append([uid, *(image.labels[name] for name in FINDINGS)])
        boxes += [[uid, label, *map(str, (box.x, box.y, box.width, box.height))] for label, box in marked]
        yield image.path, content
    yield BOXES, to_csv(boxes)
    yield LABELS, to_csv(labels)
