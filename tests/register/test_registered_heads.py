"""Registration of detectors and inversions: the gate on real evaluations, the model card, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import tracking
from components.evaluate import run as evaluate
from components.params import Params
from components.register import run as register
from tests.heads import PARAMS, Heads
from tests.register import folders
from tests.register.folders import NAME, versions

Change = Callable[[dict[str, Any]], object]
TASKS = pytest.mark.parametrize("task", ["detect", "invert"])
pytestmark = pytest.mark.usefixtures("own_mlflow")


@pytest.fixture(autouse=True)
def _without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    folders.skip_onnx(monkeypatch)


def found_in(share: int) -> Change:
    """Returns a change that finds all boxes in every `share`-th image and none in the others."""

    def change(row: dict[str, Any]) -> None:
        hit = int(row["image_id"], 16) % share == 0
        row["boxes"] = [{**box, "score": 0.9} for box in row["targets"] or []] if hit else []

    return change


def closer_by(decibels: float) -> Change:
    """Returns a change that makes reconstructions better than the mean image by about `decibels` of PSNR."""

    def change(row: dict[str, Any]) -> None:
        row["psnr"] = row["mean_image_psnr"] + decibels + (int(row["image_id"], 16) % 10) / 100
        row["mse"] = 10 ** (-row["psnr"] / 10)

    return change


POOR, FAIR, GOOD = "poor", "fair", "good"
VARIANTS: dict[str, dict[str, Change]] = {
    "detect": {POOR: found_in(10**9), FAIR: found_in(2), GOOD: found_in(1)},
    "invert": {POOR: closer_by(-1.0), FAIR: closer_by(0.5), GOOD: closer_by(1.0)},
}


LATER: dict[str, Change] = {"detect": found_in(3), "invert": closer_by(0.6)}
"""Above the floor, but worse than GOOD."""


def variant(heads: Heads, task: str, folder: Path, change: Change) -> tuple[Path, Path]:
    """Copies a model with changed predictions and evaluates it; returns both folders."""
    model, evaluation = folder / "model", folder / "evaluation"
    shutil.copytree(heads.model(task), model)
    table = pq.read_table(model / "predictions.parquet")
    rows = table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), model / "predictions.parquet")
    evaluate.run(predictions=[str(model)], out=str(evaluation), **PARAMS.arguments("evaluate"))
    return model, evaluation


def registration_of(name: str | None, model: Path, evaluation: Path, out: Path) -> dict[str, Any]:
    params = Params.model_validate({"register": {"name": name, "resamples": 300}})
    register.run(model=str(model), evaluation=str(evaluation), out=str(out), **params.arguments("register"))
    content: dict[str, Any] = json.loads((out / "registration.json").read_text())
    return content


@TASKS
def test_better_models_become_champion_and_worse_ones_do_not(task: str, heads: Heads, tmp_path: Path) -> None:
    made = {kind: variant(heads, task, tmp_path / kind, change) for kind, change in VARIANTS[task].items()}

    poor = registration_of(NAME, *made[POOR], tmp_path / "out")
    assert (poor["alias"], poor["task"]) == ("challenger", task)
    assert re.search(r"no champion yet, but the lower end of the interval .* is not above 0", poor["reason"])
    fair = registration_of(NAME, *made[FAIR], tmp_path / "out")
    assert (fair["version"], fair["alias"], fair["champion_before"]) == ("2", "champion", None)
    good = registration_of(NAME, *made[GOOD], tmp_path / "out")
    assert (good["version"], good["alias"], good["champion_before"]) == ("3", "champion", "2")
    assert 0 < good["difference"]["low"] <= good["difference"]["estimate"]
    again = registration_of(NAME, *variant(heads, task, tmp_path / "again", LATER[task]), tmp_path / "out")
    assert (again["version"], again["alias"], again["champion_before"]) == ("4", "challenger", "3")
    assert "does not lie above zero" in again["reason"]

    both = {kind: json.loads((made[kind][1] / "metrics.json").read_text())[good["metric"]] for kind in (FAIR, GOOD)}
    assert good["difference"]["estimate"] == pytest.approx(both[GOOD] - both[FAIR], abs=1e-6)
    assert good["value"] == both[GOOD]
    tags = tracking.client().get_model_version(NAME, "3").tags
    assert (tags["task"], float(tags[good["metric"]])) == (task, pytest.approx(both[GOOD], rel=1e-4))

    params = tmp_path / "params.yaml"
    params.write_text(f"register: {{name: {NAME}}}")
    assert main(["register", "--rollback", "--params", str(params)]) == 0
    assert versions()["2"] == ["champion"]
    assert main(["register", "--demote", "--params", str(params)]) == 0
    assert not any("champion" in aliases for aliases in versions().values())


def test_the_interval_agrees_with_a_bootstrap_over_patients(heads: Heads, tmp_path: Path) -> None:
    """The interval agrees with an explicit bootstrap, over patients, of the gain in PSNR."""
    better = np.random.default_rng(0).normal(0.3, 0.2, 1000)

    def improve(row: dict[str, Any]) -> None:
        closer_by(0.5)(row)
        row["psnr"] += float(better[int(row["patient_id"], 16) % 1000])

    registration_of(NAME, *variant(heads, "invert", tmp_path / "fair", closer_by(0.5)), tmp_path / "out")
    found = registration_of(NAME, *variant(heads, "invert", tmp_path / "better", improve), tmp_path / "out")["difference"]
    table = heads.predictions("invert")
    gain = pd.Series(better[[int(patient, 16) % 1000 for patient in table["patient_id"]]])
    sums = gain.groupby(table["patient_id"].to_numpy()).agg(["sum", "size"])
    drawn = np.random.default_rng(1).integers(0, len(sums), (4000, len(sums)))
    means = sums["sum"].to_numpy()[drawn].sum(axis=1) / sums["size"].to_numpy()[drawn].sum(axis=1)
    assert found["estimate"] == pytest.approx(gain.mean(), abs=1e-4)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.05)


def test_models_tested_on_different_data_are_not_compared(heads: Heads, tmp_path: Path) -> None:
    def refused(task: str, change: Change) -> str:
        champion = f"{NAME}-{len(list(tmp_path.iterdir()))}"
        folder = tmp_path / champion
        first = registration_of(champion, *variant(heads, task, folder / "a", VARIANTS[task][FAIR]), tmp_path / "out")
        assert first["alias"] == "champion"
        model, evaluation = variant(heads, task, folder / "b", change)
        second = registration_of(champion, model, evaluation, tmp_path / "out")
        assert (second["alias"], second["difference"]) == ("challenger", None)
        return str(second["reason"])

    def moved(row: dict[str, Any]) -> None:
        found_in(1)(row)
        row["targets"] = row["targets"] and [{**box, "x": box["x"] + 1} for box in row["targets"]]

    def renamed(row: dict[str, Any]) -> None:
        closer_by(1.0)(row)
        row["image_id"] = row["image_id"][::-1]

    assert "tested against other boxes" in refused("detect", moved)
    assert "tested on other images (19 and 19 images, 0 in common)" in refused("invert", renamed)


@TASKS
def test_names_follow_the_task_and_tasks_are_not_mixed(task: str, heads: Heads, tmp_path: Path) -> None:
    assert registration_of(None, heads.model(task), heads.evaluation, tmp_path / "out")["name"] == f"cxr-{task}"
    other = {"detect": "invert", "invert": "detect"}[task]
    with pytest.raises(UserError, match=rf"register\.name: cxr-{task} holds models of {task}, not of {other}; choose another name"):
        registration_of(f"cxr-{task}", heads.model(other), heads.evaluation, tmp_path / "other")


@TASKS
def test_the_card_is_complete_and_its_code_loads_the_export(task: str, heads: Heads, tmp_path: Path) -> None:
    registration_of(NAME, heads.model(task), heads.evaluation, tmp_path / "out")
    export = tmp_path / "out" / "model"
    card = (export / "README.md").read_text()
    metrics = json.loads((heads.evaluation / "metrics.json").read_text())
    shown = {"detect": ["RetinaNet on resnet18", "| Cardiomegaly |", "mAP@50"], "invert": ["| PSNR |", "random weights of seed 2"]}
    for part in ("not a medical device", NAME, *shown[task]):
        assert part in card, part
    number = metrics["detect_test_map_50_high" if task == "detect" else "invert_test_psnr"]
    assert f"{number:.3f}" in card
    assert "$" not in card

    plain = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    uses = {
        "detect": "found = network(torch.rand(1, 1, 48, 48))[0]\nassert {'boxes', 'scores', 'labels'} <= found.keys()",
        "invert": "w = model.latents(torch.rand(1, 1, 16, 16))\nassert model.inverter.image(w).shape == (1, 1, 16, 16)",
    }
    subprocess.run([sys.executable, "-c", f"{plain}\nimport torch\n{uses[task]}"], cwd=export, check=True)


@TASKS
def test_models_of_an_earlier_version_are_refused_in_one_sentence(
    task: str, heads: Heads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(heads.model(task), model)
    about = json.loads((model / "model.json").read_text())
    missing = {"detect": "channels", "invert": "refine_steps"}[task]
    del about[missing]
    (model / "model.json").write_text(json.dumps(about))
    assert main(["register", "--model", str(model), "--evaluation", str(heads.evaluation), "--out", str(tmp_path / "out")]) == 2
    sentence = f"model.json: lacks {missing}, without which the network cannot be built; run {task} again"
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert main(["predict", "--model", str(model), "--raw", str(heads.raw), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err


def test_the_first_of_several_models_of_a_task_is_registered(heads: Heads, tmp_path: Path) -> None:
    model, _ = variant(heads, "invert", tmp_path / "one", closer_by(1.0))
    evaluate.run(predictions=[str(heads.detect), str(model), str(heads.invert)], out=str(tmp_path / "both"), **PARAMS.arguments("evaluate"))
    with pytest.raises(UserError, match=r"run evaluate with .* as the first of --predictions"):
        registration_of(NAME, heads.invert, tmp_path / "both", tmp_path / "out")
    evaluate.run(predictions=[str(model), str(heads.invert)], out=str(tmp_path / "first"), **PARAMS.arguments("evaluate"))
    assert registration_of(NAME, model, tmp_path / "first", tmp_path / "out")["alias"] == "champion"
