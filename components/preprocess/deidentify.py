"""What leaves the raw files: two pseudonyms and an allow-list of header fields, nothing else.

Pseudonyms are HMAC-SHA256 under a key that only the hospital has (CXR_PSEUDONYM_KEY): with it, and the raw files, a
pseudonym can be computed again and so linked back; without it, guessing patient ids leads nowhere.
"""

import hmac
import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.common.dicom.header import Header
from components.common.dicom.views import canonical_view
from components.common.errors import UserError
from components.preprocess.labels import Record

ENVIRONMENT_VARIABLE = "CXR_PSEUDONYM_KEY"
MIN_KEY_LENGTH = 16
MAX_AGE = 90.0
"""Years; older patients are few enough to be recognised."""
ALLOW_LIST = {
    "view": ("ViewPosition", "ViewCodeSequence"),
    "sex": ("PatientSex",),
    "age": ("PatientAge", "PatientBirthDate", "StudyDate"),
    "manufacturer": ("Manufacturer",),
    "photometric": ("PhotometricInterpretation",),
    "transfer_syntax": ("TransferSyntaxUID",),
    "source_height": ("Rows",),
    "source_width": ("Columns",),
}
"""Column -> the header's attributes that it is made of, by `describe`. docs/privacy.md says what each can hold."""
PSEUDONYMS = {"image_id": ("SOPInstanceUID",), "patient_id": ("PatientID", "StudyInstanceUID")}
"""Column -> the attributes of whose value it is the pseudonym."""
_MAKE_KEY = "set it to a secret key, made with `openssl rand -hex 32`, and keep that key"
_HIGHEST_AGE = 120.0
_SIMULATED_KEY = b"of simulated cohorts, whose patients do not exist"
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Pseudonyms:
    """Makes pseudonyms under one key."""

    key: bytes
    simulated_only: bool = False
    """The key is the public one, fit for simulated cohorts alone."""

    @property
    def key_id(self) -> str:
        """Tells keys apart without giving them away."""
        return "simulated" if self.simulated_only else self._of("key", "id")[:8]

    def image(self, uid: str) -> str:
        """Pseudonym of a SOPInstanceUID: 32 hex digits."""
        return self._of("image", uid)

    def patient(self, identity: str) -> str:
        """Pseudonym of a patient's identity: 32 hex digits."""
        return self._of("patient", identity)

    def check(self, header: Header) -> None:
        """Refuses real patients when there is no key.

        Raises:
            UserError: the file is not marked as simulated.
        """
        if self.simulated_only and not header.synthetic:
            raise UserError(f"{ENVIRONMENT_VARIABLE} is not set, and not every file is a simulated one (Synthetic Data): {_MAKE_KEY}")

    def _of(self, domain: str, text: str) -> str:
        # The domain keeps pseudonyms of different things apart when their raw values agree.
        return hmac.digest(self.key, f"{domain}\0{text}".encode("utf-8", "surrogateescape"), "sha256").hex()[:32]


@dataclass(frozen=True)
class Identity:
    """Whom an image is of."""

    source: str
    """Where the identity comes from."""
    text: str
    """The raw identity. It never leaves the process."""


def load_pseudonyms() -> Pseudonyms:
    """With the key from the environment, else with the public one for simulated cohorts.

    Raises:
        UserError: the key is too short to be secret.
    """
    key = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not key:
        return Pseudonyms(_SIMULATED_KEY, simulated_only=True)
    if len(key) < MIN_KEY_LENGTH:
        raise UserError(f"{ENVIRONMENT_VARIABLE} has {len(key)} characters and needs {MIN_KEY_LENGTH}: {_MAKE_KEY}")
    return Pseudonyms(key.encode("utf-8", "surrogateescape"))


def patient_identity(header: Header, record: Record | None, path: str) -> Identity:
    """The patient: by PatientID, else labels.csv or the like of a layout, else StudyInstanceUID, else the file stands for itself."""
    if header.patient_id:
        return Identity("PatientID", f"id:{header.patient_id}")
    if record and record.patient:
        return Identity(record.file, f"id:{record.patient}")
    if header.study_instance_uid:
        return Identity("StudyInstanceUID", f"study:{header.study_instance_uid}")
    return Identity("file", f"file:{path}")


def image_uid(header: Header, path: str) -> str:
    """What makes an image unique: its SOPInstanceUID, else its path."""
    return header.sop_instance_uid or path


def describe(header: Header, record: Record | None) -> dict[str, Any]:
    """The columns of ALLOW_LIST: from the header, or from labels.csv where the header is silent.

    Args:
        header: of a file that was not refused.
        record: its row in labels.csv.
    """
    age = parse_age(header.age)
    age = age_between(header.birth_date, header.study_date) if age is None else age
    return {
        "view": view_of(header, record) or None,
        "sex": parse_sex(header.sex) or parse_sex(record.sex if record else ""),
        "age": parse_age(record.age) if age is None and record else age,
        "manufacturer": parse_manufacturer(header.manufacturer),
        "photometric": header.photometric,
        "transfer_syntax": str(header.transfer_syntax),
        "source_height": header.height,
        "source_width": header.width,
    }


def view_of(header: Header, record: Record | None) -> str:
    """View Position as `attributes.canonical_view` spells it; empty if nobody says."""
    return header.view or (canonical_view(record.view) if record else "")


def parse_sex(text: str) -> str | None:
    """M, F or O (PS3.3 C.7.1.1); anything else is None."""
    text = text.upper()
    return {"MALE": "M", "FEMALE": "F", "OTHER": "O"}.get(text, text if text in ("M", "F", "O") else None)


def parse_age(text: str) -> float | None:
    """Years from an age string (057Y, 006M, 010W, 005D: PS3.5 6.2) or a bare number of years, capped at 90."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    return _plausible(float(match[1]) * _YEARS[match[2] or "Y"]) if match else None


def age_between(birth_date: str, study_date: str) -> float | None:
    """Completed years between two dates (YYYYMMDD): no finer, since the dates themselves must not leave."""
    try:
        born, seen = (datetime.strptime(date, "%Y%m%d") for date in (birth_date, study_date))
    except ValueError:
        return None
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return _plausible(float(years))


def parse_manufacturer(text: str) -> str | None:
    """Upper case, letters, digits and simple punctuation only, at most 32 characters."""
    kept = " ".join(re.sub(r"[^A-Z0-9.&/ -]", " ", text.upper()).split())[:32].strip()
    return kept or None


def _plausible(years: float) -> float | None:
    return min(years, MAX_AGE) if 0 <= years <= _HIGHEST_AGE else None
