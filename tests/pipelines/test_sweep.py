"""The combinations of a sweep, the choice among their models, and a tiny sweep from raw files to its evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.runs import tracking
from components.evaluate.params import Sweep
from components.params import Params, load
from pipelines import sweep_plan
from tests.pipelines.conftest import Workplace
from tests.pipelines.test_local import pipeline_status, run

GRID = {"grid": {"lr": [0.001, 0.01], "loss": ["bce", "focal"]}, "seeds": [0, 1]}


def planned(**sweep: Any) -> list[dict[str, Any]]:
    models = sweep_plan.plan("shards", "backbone", "root", Params.model_validate({"sweep": {**GRID, **sweep}}))
    return [{**model, "section": json.loads(model["section"])} for model in models]


def test_each_combination_is_trained_once_per_seed() -> None:
    models = planned()
    found = {(model["section"]["lr"], model["section"]["loss"], model["section"]["seed"]) for model in models}
    assert found == {(lr, loss, seed) for lr in (0.001, 0.01) for loss in ("bce", "focal") for seed in (0, 1)}
    assert len({model["folder"] for model in models}) == len(models) == 8
    assert {model["section"]["epochs"] for model in models} == {Params().classify.epochs}, "the others are those of the section"
    assert {(model["stage"], model["inputs"]) for model in models} == {("classify", '{"shards": ["shards"], "backbone": "backbone"}')}
    same = {model["folder"] for model in planned(grid={"lr": [0.001], "loss": ["bce"]}, seeds=[0])}
    assert same < {model["folder"] for model in models}, "a larger grid has the same models"


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"stage": "pretrain"}, "sweep: stage: pretrain is not a head; choose classify, detect or invert"),
        ({"grid": {"lrr": [1]}}, "sweep: grid: lrr is not one of the parameters of classify to vary: adjustment, arch"),
        ({"grid": {"seed": [1]}}, "sweep: grid: seed is not one of the parameters"),
        ({"grid": {"lr": []}}, "sweep.grid.lr: tuple should have at least 1 item"),
        ({"metric": "classify_test_auroc_macro"}, "sweep.metric: string should match pattern '^val_'"),
        ({"grid": {"lr": [0.1, -1]}}, "sweep.grid: classify.lr: input should be greater than 0, not -1"),
    ],
)
def test_mistakes_name_the_key(sweep: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"sweep": sweep}))
    with pytest.raises(UserError) as caught:
        sweep_plan.combinations(load(tmp_path / "params.yaml"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def trained(folder: Path, lr: float, seed: int, **metrics: float | None) -> str:
    made = folder / f"{lr} {seed}"
    made.mkdir()
    (made / "run.json").write_text(json.dumps({"stage": "classify", "params": {"lr": lr, "seed": seed, "epochs": 1}}))
    (made / "metrics.json").write_text(json.dumps(metrics))
    return str(made)


def test_the_highest_mean_over_the_seeds_of_the_validation_split_is_chosen(tmp_path: Path) -> None:
    """The best single model, the best on the test split, and one whose number is not known do not win."""
    numbers = {(0.1, 0): 0.9, (0.1, 1): 0.5, (0.2, 1): 0.8, (0.2, 0): 0.75, (0.3, 0): 0.99, (0.3, 1): None}
    models = [trained(tmp_path, *key, val_auroc_macro=value, test_auroc_macro=1 - (value or 0)) for key, value in numbers.items()]
    choice = sweep_plan.choose(models, Sweep(grid={"lr": (0.1, 0.2, 0.3)}, seeds=(0, 1)))
    assert choice == ({"lr": 0.2}, pytest.approx(0.775), str(tmp_path / "0.2 0"))


def test_a_number_that_the_models_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json has no val_map_50; set sweep\.metric to one of val_nll, val_auroc_macro"):
        sweep_plan.choose([trained(tmp_path, 0.1, 0, val_nll=1, val_auroc_macro=1, x=2)], Sweep(grid={"lr": (0.1,)}, metric="val_map_50"))


@pytest.mark.slow
def test_a_tiny_sweep_from_raw_files_to_the_evaluation_of_its_best_model(workplace: Workplace) -> None:
    path = workplace.folder / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"sweep": {"grid": {"lr": [0.0001, 0.01], "loss": ["bce"]}}}))
    assert run(workplace, workplace.settings(), name="sweep") == 0
    assert pipeline_status() == ("FINISHED", {"FINISHED"})
    models = {json.loads((one.parent / "run.json").read_text())["params"]["lr"]: one for one in workplace.out.glob("sweep/*/metrics.json")}
    numbers = {lr: json.loads(one.read_text())["val_auroc_macro"] for lr, one in models.items()}
    assert set(numbers) == {0.0001, 0.01}
    evaluated = json.loads((workplace.output("evaluate") / "metrics.json").read_text())
    assert evaluated["classify_val_auroc_macro"] == pytest.approx(max(numbers.values()), abs=1e-6)
    client = MlflowClient(tracking.uri())
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()], order_by=["attributes.start_time DESC"])
    parent = next(one for one in runs if one.data.tags["stage"] == "pipeline")
    best = parent.data.params["best.classify.lr"]
    assert parent.data.params == {"best.classify.lr": best, "best.classify.loss": "bce"}
    assert parent.data.metrics["best_val_auroc_macro"] == numbers[float(best)] == max(numbers.values())
    below = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id and one.data.tags["stage"] == "classify"]
    assert {float(one.data.params["lr"]): one.data.metrics["val_auroc_macro"] for one in below} == pytest.approx(numbers)
    assert parent.data.tags["headline"].startswith(f"loss bce, lr {best}: val_auroc_macro ")
