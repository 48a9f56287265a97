import dataclasses
import hashlib
import hmac

import pytest

from components.common.dicom import dicom_file
from components.common.dicom.header import Header
from components.common.errors import UserError
from components.preprocess.deidentify import (
    ENVIRONMENT_VARIABLE,
    Pseudonyms,
    age_between,
    describe,
    load_pseudonyms,
    parse_age,
    parse_manufacturer,
    parse_sex,
    patient_identity,
)
from components.preprocess.labels import Record
from tests.common.dicom.phantoms import IDENTIFIERS, dataset, picture, to_bytes

KEY = b"a key that is long enough"
RECORD = Record(line=2, labels=(), patient="P7", view="AP", sex="m", age="044Y")


def header(**elements: str | None) -> Header:
    return dicom_file.open_file(to_bytes(dataset(picture(), **elements)))[1]


def test_pseudonyms_are_hmacs_with_a_domain() -> None:
    pseudonyms = Pseudonyms(KEY)
    assert pseudonyms.image("1.2.3") == hmac.new(KEY, b"image\x001.2.3", hashlib.sha256).hexdigest()[:32]
    assert pseudonyms.patient("1.2.3") == hmac.new(KEY, b"patient\x001.2.3", hashlib.sha256).hexdigest()[:32]
    assert Pseudonyms(KEY + b"2").image("1.2.3") != pseudonyms.image("1.2.3")


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY.decode())
    loaded = load_pseudonyms()
    assert loaded == Pseudonyms(KEY) and KEY.decode() not in loaded.key_id
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "short")
    with pytest.raises(UserError, match=r"5 characters.*openssl rand"):
        load_pseudonyms()


def test_without_a_key_only_simulated_files_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    pseudonyms = load_pseudonyms()
    pseudonyms.check(header(SyntheticData="YES"))
    for value in (None, "NO"):
        with pytest.raises(UserError, match=rf"{ENVIRONMENT_VARIABLE} is not set.*openssl rand"):
            pseudonyms.check(header(SyntheticData=value))


def test_the_key_id_tells_keys_apart() -> None:
    assert Pseudonyms(KEY).key_id != Pseudonyms(KEY + b"2").key_id
    assert len(Pseudonyms(KEY).key_id) == 8


def test_patients_are_identified_by_the_best_available_attribute() -> None:
    assert patient_identity(header(), RECORD, "f").source == "PatientID"
    assert patient_identity(header(PatientID=None), RECORD, "f").source == "labels.csv"
    assert patient_identity(header(PatientID=" "), RECORD._replace(patient=""), "f").source == "StudyInstanceUID"
    assert patient_identity(header(PatientID=None, StudyInstanceUID=None), None, "f").source == "file"


def test_a_patient_named_in_labels_csv_is_the_one_with_that_patient_id() -> None:
    named = patient_identity(header(PatientID=None), RECORD, "f")
    assert named.text == patient_identity(header(PatientID="P7"), None, "g").text


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("057Y", 57), ("006M", 0.5), ("010W", 70 / 365.25), ("005D", 5 / 365.25), ("81", 81), ("091Y", 90), ("120Y", 90),
        ("000Y", 0), ("414Y", None), ("", None), ("-05Y", None), ("abc", None), ("12X", None), ("1e3", None),
    ],
)  # fmt: skip
def test_ages(text: str, years: float | None) -> None:
    assert parse_age(text) == (None if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("born", "seen", "years"),
    [
        ("19570318", "20240317", 66), ("19570318", "20240318", 67), ("20000229", "20010228", 0), ("19000101", "20150101", 90),
        ("20240101", "20230101", None), ("", "20230101", None), ("1957", "20230101", None),
        ("1957.03.18", "2024-03-18", 67), ("18000101", "20230101", None),
    ],
)  # fmt: skip
def test_age_between_dates_is_in_completed_years(born: str, seen: str, years: float | None) -> None:
    assert age_between(born, seen) == years


def test_sex_and_manufacturer_are_normalised() -> None:
    assert [parse_sex(text) for text in ("F", "m", "Other", "U", "", "F;MRN123")] == ["F", "M", "O", None, None, None]
    assert parse_manufacturer("  Röntgen &  Söhne\x07 ") == "R NTGEN & S HNE"
    assert parse_manufacturer("GE Healthcare") == "GE HEALTHCARE"
    assert parse_manufacturer("x" * 100) == "X" * 32
    assert parse_manufacturer("***") is None


def test_description_is_an_allow_list() -> None:
    described = describe(header(), None)
    assert set(described) == {"view", "sex", "age", "manufacturer", "photometric", "transfer_syntax", "source_height", "source_width"}
    assert described["age"] == 57 and described["sex"] == "F" and described["view"] == "PA"
    assert not any(value in str(described) for value in IDENTIFIERS.values())


def test_labels_csv_fills_in_what_the_header_lacks() -> None:
    silent = header(PatientAge=None, PatientBirthDate=None, PatientSex=None, ViewPosition=None)
    filled = describe(silent, RECORD)
    assert (filled["age"], filled["sex"], filled["view"]) == (44, "M", "AP")
    assert describe(header(), RECORD)["age"] == 57
    assert describe(header(PatientAge=None), RECORD)["age"] == 67


@pytest.mark.parametrize("placeholder", ["000Y", "0", "999Y"])
def test_an_age_that_cannot_be_is_replaced_by_the_dates_or_the_table(placeholder: str) -> None:
    dated = {"PatientBirthDate": "19570318", "StudyDate": "20240719"}
    undated = {"PatientBirthDate": None}
    assert describe(header(PatientAge=placeholder, **dated), RECORD)["age"] == 67
    assert describe(header(PatientAge=placeholder, **undated), RECORD)["age"] == 44
    assert describe(header(PatientAge=placeholder, **undated), None)["age"] == (None if placeholder == "999Y" else 0)
    assert describe(header(PatientAge="000Y", PatientBirthDate="20240318", StudyDate="20240719"), None)["age"] == 0


def test_the_header_holds_no_name_or_place() -> None:
    values = " ".join(str(value) for value in dataclasses.asdict(header()).values())
    kept = {"PatientID", "PatientBirthDate", "StudyDate"}
    assert not any(value in values for keyword, value in IDENTIFIERS.items() if keyword not in kept)
