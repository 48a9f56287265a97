"""From raw phantoms to metrics: the detector learns the findings at the scale of the demo, from images of 96 pixels."""

import json
from pathlib import Path

import pytest

from components.__main__ import main
from tests import ROOT


@pytest.mark.slow
def test_detects_findings_of_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", "0123456789abcdef")
    params = ["--params", str(ROOT / "params.yaml"), "--set", "preprocess.size=96"]
    assert main(["simulate", "--out", "data", *params]) == 0
    assert main(["preprocess", "--raw", "data", "--out", "shards", *params]) == 0
    assert main(["detect", "--shards", "shards", "--out", "detect", *params]) == 0
    assert main(["evaluate", "--predictions", "detect", "--out", "evaluation", *params]) == 0
    metrics = json.loads(Path("evaluation/metrics.json").read_text())
    assert metrics["detect_test_map_50"] > 0.4
