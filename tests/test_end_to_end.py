"""From phantom DICOM files to a registered model through the command line, as `make demo` does."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest
import yaml

from components.__main__ import main

PARAMS = {
    "runtime": {"workers": 1},
    "simulate": {"patients": 40, "size": 64},
    "preprocess": {"size": 32, "parts": 2},
    "pretrain": {"arch": "resnet18", "epochs": 1, "batch_size": 16, "queue_size": 32, "shuffle_groups": 4},
    "classify": {"arch": "resnet18", "epochs": 1, "batch_size": 16},
    "evaluate": {"resamples": 100, "min_positives": 2},
    "register": {"min_auroc": 0.0, "resamples": 100},
}
IDENTIFIERS = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "AccessionNumber",
    "InstitutionName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_all_stages() -> None:
    """Runs all stages, each of which must exit with 0."""
    assert main(["simulate", "--out", "data"]) == 0
    assert main(["preprocess", "--raw", "data", "--out", "a/shards"]) == 0
    assert main(["pretrain", "--shards", "a/shards", "--out", "a/backbone"]) == 0
    assert main(["classify", "--shards", "a/shards", "--backbone", "a/backbone", "--out", "a/classify"]) == 0
    assert main(["evaluate", "--predictions", "a/classify", "--out", "a/evaluation"]) == 0
    assert main(["register", "--model", "a/classify", "--evaluation", "a/evaluation", "--out", "a/registration"]) == 0


def test_from_raw_files_to_a_registered_model(workplace: Path) -> None:
    run_all_stages()

    registration = json.loads((workplace / "a/registration/registration.json").read_text())
    assert registration["alias"] == "champion"
    metrics = json.loads((workplace / "a/evaluation/metrics.json").read_text())
    low, middle, high = (metrics[f"classify_test_auroc_macro{end}"] for end in ("_low", "", "_high"))
    assert low <= middle <= high
    assert "<html" in (workplace / "a/evaluation/report.html").read_text()
    records = {path.parent.name: json.loads(path.read_text()) for path in workplace.glob("a/*/run.json")}
    assert sorted(records) == ["backbone", "classify", "evaluation", "registration", "shards"]
    upstream = records["classify"]["upstream_mlflow_run_ids"]
    assert upstream == {"shards": records["shards"]["mlflow_run_id"], "backbone": records["backbone"]["mlflow_run_id"]}
    assert not list(workplace.glob("a/*.partial"))
    assert_nothing_identifies(workplace)


def assert_nothing_identifies(workplace: Path) -> None:
    """Checks that no output contains an identifier from a header, compressed columns included."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in (workplace / "data").rglob("*.dcm")]
    secrets = {str(header.get(name)).encode() for header in headers for name in IDENTIFIERS if header.get(name)}
    assert len(secrets) > 4 * len(headers)
    for path in (workplace / "a").rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            columns = [name for name in pq.read_schema(path).names if name != "pixels"]
            content += repr(pq.read_table(path, columns=columns).to_pylist()).encode()
        found = [secret for secret in secrets if len(secret) > 3 and secret in content]
        assert not found, f"{path} holds {found[:3]}"
