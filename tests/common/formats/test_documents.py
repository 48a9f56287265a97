import json
from itertools import product

import pytest
from mlflow.utils import validation

from components.common.errors import UserError
from components.common.formats.documents import LONGEST_KEY, metrics_to_json, mlflow_key, parse_json, to_json

REFUSED = [
    "", ".", "..", "...", "../Nodule", "/Nodule", "//Nodule", "Nodule/", "Nodule//left", "Nodule/./left", "Nodule/../left", "./Nodule",
    "Nodule (left)", "Nodule [left]", "Nodule: left", "Nodule, left", "Nodule_left\n", "Nodule\tleft", "Nodule=1", "a%20b", "Herz >50 %",
    "Erguß u\u0308ber 5 cm", "Nodule\udc80", "🫁", "x" * 151, "x" * 150 + "y", "a/" * 100,
]  # fmt: skip
TAKEN = ["Effusion", "Nodule_left", "Erguß über 5 cm", "心肥大", "No Finding", "Pleura/Lunge", "2.5-3 cm", "Nodule ", "x" * 150]


def test_documents_survive_a_round_trip() -> None:
    assert parse_json(to_json({"a": [1, None]}), "a.json", "simulate") == {"a": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_anything_but_an_object_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.json: not a JSON object; run simulate again"):
        parse_json(content, "a.json", "simulate")


def test_undefined_metrics_are_null() -> None:
    assert json.loads(metrics_to_json({"a": float("nan"), "b": 0.5})) == {"a": None, "b": 0.5}


def test_mlflow_takes_every_key() -> None:
    """The keys are judged by MLflow's own rules, alone and within a longer name."""
    keys = {name: mlflow_key(name) for name in (*TAKEN, *REFUSED)}
    assert {name: keys[name] for name in TAKEN} == {name: name for name in TAKEN}
    assert len(set(keys.values())) == len(keys)
    for key, (before, after) in product(keys.values(), (("", ""), ("classify_2_test_sensitivity_", "_difference_estimate_high"))):
        validation._validate_metric(f"{before}{key}{after}", 0.5, 0, 0)
        validation._validate_param(f"{before}{key}{after}", "1")
        validation._validate_tag(f"{before}{key}{after}", "1")


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_stays_as_it_is(name: str) -> None:
    assert mlflow_key(mlflow_key(name)) == mlflow_key(name) == mlflow_key(mlflow_key(name), LONGEST_KEY)
