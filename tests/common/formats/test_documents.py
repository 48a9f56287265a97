import json

import pytest

from components.common.errors import UserError
from components.common.formats.documents import metrics_to_json, parse_json, to_json


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
