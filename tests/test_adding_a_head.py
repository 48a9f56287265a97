"""Adds a head to a copy of the code as docs/adding-a-head.md says: one folder, and one line in the table of heads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from components.params import Params
from components.preprocess import run as preprocess
from components.simulate import run as simulate
from tests import ROOT
from tests.pipelines.conftest import SETTINGS

IMPORT = ("from components.invert.params import Invert\n", "from components.toy.params import Toy\n")
LINE = ("_INVERT_INPUTS),\n", '        Head("toy", Toy, "regression of brightness", "fit a regression of mean brightness"),\n')
PARAMS = {
    "simulate": {"patients": 24, "size": 80},
    "preprocess": {"size": 32, "parts": 1, "test_fraction": 0.4},
    "evaluate": {"resamples": 100},
    "register": {"resamples": 100},
    "runtime": {"workers": 1},
}


class Copy:
    """A copy of the code with the toy."""

    def __init__(self, folder: Path):
        self.folder = folder
        for source, target in (("components", "components"), ("pipelines", "pipelines"), ("tests/toy_head", "components/toy")):
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        table = folder / "components" / "heads.py"
        content = table.read_text()
        for line, new in (IMPORT, LINE):
            assert content.count(line) == 1
            content = content.replace(line, line + new)
        table.write_text(content)
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        (folder / "settings.yaml").write_text(yaml.safe_dump({**SETTINGS, "heads": ["classify", "toy"]}))

    def run(self, *command: str) -> str:
        """Runs a command in the copy and returns its log."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", *command], cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def register(self, seed: int) -> dict[str, Any]:
        """Trains, evaluates and registers a model; returns its registration.json."""
        model, evaluation, registration = f"toy-{seed}", f"evaluation-{seed}", f"registration-{seed}"
        self.run("components", "toy", "--shards", "shards", "--out", model, "--set", f"toy.seed={seed}")
        self.run("components", "evaluate", "--predictions", model, "--baseline", "toy-0", "--out", evaluation)
        self.run("components", "register", "--model", model, "--evaluation", evaluation, "--out", registration)
        return self.read(f"{registration}/registration.json")

    def read(self, name: str) -> dict[str, Any]:
        """Reads a JSON file."""
        found: dict[str, Any] = json.loads((self.folder / name).read_text())
        return found

    def predictions(self, folder: str) -> pd.DataFrame:
        """Reads the predictions for the test split, by image_id."""
        table = pd.read_parquet(self.folder / folder / "predictions.parquet")
        return table[table["split"] == "test"].set_index("image_id")


def test_the_page_quotes_the_toy() -> None:
    code = [path.read_text() for path in (ROOT / "tests" / "toy_head").glob("*.py")] + [IMPORT[1], LINE[1]]
    quotes = re.findall(r"```python\n(.*?)\n```", (ROOT / "docs" / "adding-a-head.md").read_text(), re.DOTALL)
    assert len(quotes) == 7
    for part in (part for quote in quotes for part in re.split(r"\n\n+|\n +\.\.\.\n", quote)):
        assert any(_without_indentation(part) in _without_indentation(content) for content in code), part


def _without_indentation(text: str) -> str:
    return "\n".join(map(str.strip, text.splitlines()))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy with raw files and shards, which do not depend on the heads."""
    made, params = Copy(tmp_path_factory.mktemp("head")), Params.model_validate(PARAMS)
    raw, shards = str(made.folder / "raw"), str(made.folder / "shards")
    simulate.run(out=raw, **params.arguments("simulate"))
    preprocess.run(raw=raw, out=shards, **params.arguments("preprocess"))
    return made


@pytest.fixture(scope="module")
def registration(copy: Copy) -> dict[str, Any]:
    """The registration.json of the first model."""
    return copy.register(seed=0)


def test_from_training_to_a_registered_model(copy: Copy, registration: dict[str, Any]) -> None:
    assert copy.read("evaluation-0/metrics.json")["toy_test_closeness"] > 0.95
    assert "<h1>Regression of brightness</h1>" in (copy.folder / "evaluation-0" / "report.html").read_text()
    assert (registration["name"], registration["version"], registration["alias"]) == ("cxr-toy", "1", "champion")
    assert registration["reason"] == "there is no champion yet, and the closeness is above 0.9"


def test_the_registered_model_scores_raw_files(copy: Copy, registration: dict[str, Any]) -> None:
    copy.run("components", "predict", "--model", "models:/cxr-toy@champion", "--raw", "raw", "--out", "predicted")
    expected = copy.predictions("toy-0")
    found = copy.predictions("predicted").loc[expected.index]
    np.testing.assert_allclose(found[["predicted", "true"]], expected[["predicted", "true"]], atol=1e-5)
    assert expected["true"].std() > 1e-2  # the tolerance means something


@pytest.mark.slow
def test_the_next_model_is_compared_with_the_champion(copy: Copy, registration: dict[str, Any]) -> None:
    second, metrics = copy.register(seed=1), copy.read("evaluation-1/metrics.json")
    assert (second["version"], second["champion_before"]) == ("2", "1")
    assert second["reason"].startswith("the difference in closeness to champion version 1 (")
    difference = metrics["toy_test_closeness"] - copy.read("evaluation-0/metrics.json")["toy_test_closeness"]
    assert second["difference"]["estimate"] == pytest.approx(difference) == metrics["toy_difference_closeness"]


def test_the_pipelines_train_and_register_it(copy: Copy) -> None:
    copy.run("pipelines", "compile", "training", "--settings", "settings.yaml", "--out", "training.yaml")
    spec = next(yaml.safe_load_all((copy.folder / "training.yaml").read_text()))
    tasks = [task for component in spec["components"].values() for task in component.get("dag", {}).get("tasks", {}).values()]
    names = {task["taskInfo"]["name"] for task in tasks}
    assert {"classify", "toy", "register-classify", "register-toy"} <= names
    assert not {"detect", "invert"} & names
    assert json.loads(spec["root"]["inputDefinitions"]["parameters"]["toy"]["defaultValue"]) == {"arch": "resnet18", "seed": 0}
