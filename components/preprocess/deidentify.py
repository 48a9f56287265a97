"""De-identification: rows hold two pseudonyms and an allow-list of header attributes, nothing else of the raw files.

Pseudonyms are HMAC-SHA256 under a secret key of the hospital (CXR_PSEUDONYM_KEY). With the key and the raw files, a pseudonym can be
computed again and thus linked back; without the key, guessing patient ids is futile.
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
MAX_AGE = 90.0  # years; older patients are few enough to be recognised
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
"""Column -> header attributes from which `describe` makes it. docs/privacy.md says what each can hold."""
PSEUDONYMS = {"image_id": ("SOPInstanceUID",), "patient_id": ("PatientID", "StudyInstanceUID")}
"""Column -> header attributes whose pseudonym it is."""
STUDY, FILE = INVENTED = ("StudyInstanceUID", "file")
"""Sources of an identity that stands in for a patient who is not known."""
_MAKE_KEY = "set it to a secret key, made with `openssl rand -hex 32`, and keep that key"
_HIGHEST_AGE = 120.0
_SIMULATED_KEY = b"of simulated cohorts, whose patients do not exist"
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Pseudonyms:
    """Makes pseudonyms under one key."""

    key: bytes
    simulated_only: bool = False  # whether the key is the public one, which is only for simulated cohorts

    @property
    def key_id(self) -> str:
        """Identifies the key without revealing it."""
        return "simulated" if self.simulated_only else self._digest("key", "id")[:8]

    def image(self, uid: str) -> str:
        """Returns the pseudonym of a SOPInstanceUID: 32 hex digits."""
        return self._digest("image", uid)

    def patient(self, identity: str) -> str:
        """Returns the pseudonym of a patient's identity: 32 hex digits."""
        return self._digest("patient", identity)

    def check(self, header: Header) -> None:
        """Raises UserError if there is no key, and the file is not marked as simulated."""
        if self.simulated_only and not header.synthetic:
            raise UserError(f"{ENVIRONMENT_VARIABLE} is not set, and not every file is a simulated one (Synthetic Data): {_MAKE_KEY}")

    def _digest(self, domain: str, text: str) -> str:
        # The domain keeps pseudonyms of different things apart if their raw values are equal.
        return hmac.digest(self.key, f"{domain}\0{text}".encode("utf-8", "surrogateescape"), "sha256").hex()[:32]


@dataclass(frozen=True)
class Identity:
    """The patient of an image."""

    source: str  # attribute or table that the identity comes from
    text: str  # the raw identity, which must never leave the process


def load_pseudonyms() -> Pseudonyms:
    """Takes the key from the environment, else the public one for simulated cohorts; raises UserError if it is too short."""
    key = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not key:
        return Pseudonyms(_SIMULATED_KEY, simulated_only=True)
    if len(key) < MIN_KEY_LENGTH:
        raise UserError(f"{ENVIRONMENT_VARIABLE} has {len(key)} characters and needs {MIN_KEY_LENGTH}: {_MAKE_KEY}")
    return Pseudonyms(key.encode("utf-8", "surrogateescape"))


def patient_identity(header: Header, record: Record | None, path: str) -> Identity:
    """Identifies the patient by PatientID, else by a table, else by StudyInstanceUID, else by the file."""
    if header.patient_id:
        return Identity("PatientID", f"id:{header.patient_id}")
    if record and record.patient:
        return Identity(record.file, f"id:{record.patient}")
    if header.study_instance_uid:
        return Identity(STUDY, f"study:{header.study_instance_uid}")
    return Identity(FILE, f"file:{path}")


def describe(header: Header, record: Record | None) -> dict[str, Any]:
    """Returns the columns of ALLOW_LIST, from the header, or from a table if the header lacks them."""
    return {
        "view": view_of(header, record) or None,
        "sex": parse_sex(header.sex) or parse_sex(record.sex if record else ""),
        "age": _age(header, record),
        "manufacturer": parse_manufacturer(header.manufacturer),
        "photometric": header.photometric,
        "transfer_syntax": str(header.transfer_syntax),
        "source_height": header.height,
        "source_width": header.width,
    }


def _age(header: Header, record: Record | None) -> float | None:
    """Returns the first age above 0, since 000Y stands in for an unknown one, else 0 if a source says so."""
    age = parse_age(header.age)
    if age:
        return age
    others = age_between(header.birth_date, header.study_date), parse_age(record.age) if record else None
    known = [each for each in (age, *others) if each is not None]
    return next(filter(None, known), known[0] if known else None)


def view_of(header: Header, record: Record | None) -> str:
    """Returns the canonical view; empty if neither the header nor a table has one."""
    return header.view or (canonical_view(record.view) if record else "")


def parse_sex(text: str) -> str | None:
    """Returns M, F or O (PS3.3 C.7.1.1); None for anything else."""
    text = text.upper()
    return {"MALE": "M", "FEMALE": "F", "OTHER": "O"}.get(text, text if text in ("M", "F", "O") else None)


def parse_age(text: str) -> float | None:
    """Parses an age string (057Y, 006M, 010W, 005D: PS3.5 6.2) or a bare number of years; returns years, capped at 90."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    return _plausible(float(match[1]) * _YEARS[match[2] or "Y"]) if match else None


def age_between(birth_date: str, study_date: str) -> float | None:
    """Returns completed years between two dates (YYYYMMDD, or with separators): nothing finer, since it would reveal the dates."""
    try:
        born, seen = (datetime.strptime(re.sub(r"[.-]", "", date), "%Y%m%d") for date in (birth_date, study_date))
    except ValueError:
        return None
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return _plausible(float(years))


def parse_manufacturer(text: str) -> str | None:
    """Returns at most 32 characters in upper case: letters, digits and simple punctuation."""
    kept = " ".join(re.sub(r"[^A-Z0-9.&/ -]", " ", text.upper()).split())[:32].strip()
    return kept or None


def _plausible(years: float) -> float | None:
    return min(years, MAX_AGE) if 0 <= years <= _HIGHEST_AGE else None
