import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from components.__main__ import main
from components.common.errors import UserError
from components.common.runs import tracking
from components.common.runs.signals import Interrupted
from components.common.runs.storage import digest_file
from components.params import Params
from components.register import run as register
from components.register.registry import Registry
from tests.register import folders
from tests.register.folders import NAME, versions

Register = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("own_mlflow")


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    folders.skip_onnx(monkeypatch)


@pytest.fixture
def registered(tmp_path: Path, without_onnx: None) -> Register:
    """Returns a function that registers the network with a seed and returns registration.json."""

    def run(seed: int, targets: folders.Scores, min_auroc: float = 0.5, first_image: int = 0) -> dict[str, Any]:
        model, evaluation = tmp_path / f"model{seed}-{first_image}", tmp_path / f"evaluation{seed}-{first_image}"
        if not model.exists():
            folders.write_evaluation(evaluation, folders.write_model(model, seed, targets, first_image))
        params = Params.model_validate({"register": {"name": NAME, "min_auroc": min_auroc, "resamples": 200}})
        register.run(model=str(model), evaluation=str(evaluation), out=str(tmp_path / "out"), **params.arguments("register"))
        content: dict[str, Any] = json.loads((tmp_path / "out" / "registration.json").read_text())
        return content

    return run


def test_first_good_model_is_the_champion(registered: Register, tmp_path: Path) -> None:
    registration = registered(1, folders.targets_of(1, flip=0.1))

    assert (registration["version"], registration["alias"], registration["champion_before"]) == ("1", "champion", None)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == {"version": 1, "champion": 1, "classify_test_auroc_macro": registration["value"]}
    client = tracking.client()
    version = client.get_model_version_by_alias(NAME, "champion")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert version.run_id == record["mlflow_run_id"]
    assert version.tags["fingerprint"] == record["fingerprint"]
    assert version.tags["input.model.sha256"] == record["inputs"]["model"]
    assert version.tags["upstream.model.run_id"] == "classify-run"
    assert version.tags["upstream.evaluation.run_id"] == "evaluate-run"
    assert float(version.tags["classify_test_auroc_macro"]) == pytest.approx(registration["value"], abs=1e-5)
    assert "Effusion, Nodule" in version.description
    assert {item.path for item in client.list_artifacts(version.run_id)} == {"registration.json", "report.html", "test_predictions.parquet"}


def test_a_registered_model_is_ten_files(registered: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a request when a model is registered and whenever it is loaded."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    registered(1, folders.targets_of(1))
    export = tmp_path / "out" / "model"
    made = {"MLmodel", "README.md", "conda.yaml", "python_env.yaml", "requirements.txt", "model.py", "code/components.zip"}
    made |= {f"artifacts/model.{kind}" for kind in ("json", "onnx", "safetensors")}
    assert set(_digests(export)) == made


def test_the_champion_can_be_loaded(registered: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(1, folders.targets_of(1))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(tracking.uri())
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    expected = pd.read_parquet(tmp_path / "model1-0" / "predictions.parquet")["score_Nodule"]
    np.testing.assert_allclose(model.predict(folders.images())["Nodule"], expected, atol=1e-4)
    assert model.metadata.run_id == tracking.client().get_model_version_by_alias(NAME, "champion").run_id
    assert "/components/" not in (Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")) / "MLmodel").read_text()


def test_only_test_rows_are_attached(registered: Register, tmp_path: Path) -> None:
    registered(1, folders.targets_of(1))
    path = Registry(NAME).predictions("1", tmp_path)
    assert path
    attached = pd.read_parquet(path)
    assert set(attached["split"]) == {"test"}
    assert len(attached) == 50


def test_below_the_floor_is_a_challenger(registered: Register) -> None:
    registration = registered(1, folders.targets_of(1, flip=0.3), min_auroc=0.99)
    assert registration["alias"] == "challenger"
    assert "not above min_auroc 0.99" in registration["reason"]
    assert versions() == {"1": ["challenger"]}


def test_a_model_that_could_not_be_evaluated_is_a_challenger(tmp_path: Path, without_onnx: None) -> None:
    model = folders.write_model(tmp_path / "model", 1, folders.targets_of(1))
    evaluation = folders.write_evaluation(tmp_path / "evaluation", model, classify_test_auroc_macro=None)
    params = Params.model_validate({"register": {"name": NAME, "min_auroc": 0}})
    register.run(model=model, evaluation=evaluation, out=str(tmp_path / "out"), **params.arguments("register"))
    assert "macro test AUROC is not known" in json.loads((tmp_path / "out" / "registration.json").read_text())["reason"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["classify_test_auroc_macro"] is None
    assert versions() == {"1": ["challenger"]}


def test_a_better_model_replaces_the_champion_and_a_worse_one_does_not(registered: Register, tmp_path: Path) -> None:
    targets = folders.targets_of(2, flip=0.05)
    registered(1, targets, min_auroc=0)

    better = registered(2, targets)
    assert (better["version"], better["alias"], better["champion_before"]) == ("2", "champion", "1")
    tables = [pd.read_parquet(tmp_path / f"model{seed}-0" / "predictions.parquet").query("split == 'test'") for seed in (1, 2)]
    old, new = (np.mean([roc_auc_score(t[f"target_{f}"], t[f"score_{f}"]) for f in folders.FINDINGS]) for t in tables)
    assert better["difference"]["estimate"] == pytest.approx(new - old, abs=1e-9)
    assert 0 < better["difference"]["low"] < new - old < better["difference"]["high"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["difference_low"] == better["difference"]["low"]

    worse = registered(3, targets)
    assert (worse["version"], worse["alias"], worse["champion_before"]) == ("3", "challenger", "2")
    assert versions() == {"1": [], "2": ["champion"], "3": ["challenger"]}


def test_rollback_restores_the_champion_and_demote_leaves_none(registered: Register, tmp_path: Path) -> None:
    targets = folders.targets_of(2, flip=0.05)
    registered(1, targets, min_auroc=0)
    registered(2, targets)
    assert versions() == {"1": [], "2": ["champion"]}
    params = tmp_path / "params.yaml"
    params.write_text(f"register: {{name: {NAME}}}")

    assert main(["register", "--rollback", "--params", str(params)]) == 0
    assert versions() == {"1": ["champion"], "2": ["challenger"]}
    assert "version 2 was rolled back" in tracking.client().get_model_version(NAME, "1").tags["champion.reason"]
    again = registered(2, targets)  # still better than version 1, but a person has decided otherwise
    assert (again["alias"], again["reason"].split(";")[1]) == ("challenger", " only by hand does it become champion again")

    assert main(["register", "--params", str(params), "--demote", "--out", str(tmp_path / "demoted")]) == 0
    assert versions() == {"1": ["challenger"], "2": []}
    assert json.loads((tmp_path / "demoted" / "registration.json").read_text())["alias"] == "challenger"


@pytest.mark.parametrize("option", ["--rollback", "--demote"])
def test_rollback_and_demote_without_a_champion_are_refused(
    option: str, registered: Register, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"register: {{name: {NAME}}}")
    assert main(["register", option, "--params", str(params)]) == 2
    assert f"{NAME}: has no champion" in capsys.readouterr().err


def test_the_card_is_complete_and_its_code_loads_the_export(registered: Register, tmp_path: Path) -> None:
    registered(3, folders.targets_of(2, flip=0.05), min_auroc=0)
    registered(2, folders.targets_of(2, flip=0.05))
    export = tmp_path / "out" / "model"
    card = (export / "README.md").read_text()
    for part in (
        "Effusion, Nodule",
        "not a medical device",
        "| Effusion |",
        "sex_F | 0.700 (0.600 to 0.800)",
        "lr 0.001",
        "shards 5ha",
        "| 1 |",
    ):
        assert part in card, part
    assert "$" not in card

    front = yaml.safe_load(card.split("---\n")[1])
    (model,) = front["model-index"]
    (result,) = model["results"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert model["name"] == NAME and result["task"] == {"type": front["pipeline_tag"]} == {"type": "image-classification"}
    assert result["metrics"][0] == {"type": "roc_auc", "name": "macro AUROC", "value": metrics["classify_test_auroc_macro"]}
    assert [round(each["value"] - metrics["classify_test_auroc_macro"], 6) for each in result["metrics"]] == [0, -0.05, 0.05]

    pyfunc, plain = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert tracking.client().get_model_version(NAME, "2").source in pyfunc
    code = plain + "x = torch.load('x.pt')\ntorch.save(torch.sigmoid(network.eval()(x)), 'y.pt')"
    x = torch.rand(3, 1, folders.SIZE, folders.SIZE)
    torch.save(x, export / "x.pt")
    subprocess.run([sys.executable, "-c", code], cwd=export, check=True)
    torch.testing.assert_close(torch.load(export / "y.pt"), torch.sigmoid(folders.network(2)(x)).detach())


def test_a_version_says_how_to_make_it_again(registered: Register) -> None:
    registered(1, folders.targets_of(1), min_auroc=0)
    tags = tracking.client().get_model_version(NAME, "1").tags
    expected = {"train.git.commit": "c0ffee", "train.params.lr": "0.001", "train.packages.torch": "2.0", "train.inputs.shards": "5ha"}
    assert expected.items() <= tags.items()
    assert {value for tag, value in tags.items() if tag.startswith("train.params.positive_rate.")} == {"0.3"}  # of a name with brackets


def test_a_champion_that_appears_meanwhile_is_compared_with_too(registered: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = folders.targets_of(2, flip=0.05)
    registered(1, targets, min_auroc=0)
    registered(3, targets)

    def promote(self: Registry, version: str, folder: Path) -> Path | None:
        tracking.client().set_registered_model_alias(NAME, "champion", "2")
        return original(self, version, folder)

    original = Registry.predictions
    monkeypatch.setattr(Registry, "predictions", promote)
    registration = registered(2, targets)
    assert (registration["version"], registration["alias"], registration["champion_before"]) == ("3", "champion", "2")
    assert "champion version 2" in registration["reason"]


def test_a_manual_promotion_is_kept_and_recorded(registered: Register) -> None:
    registered(1, folders.targets_of(1, flip=0.1), min_auroc=1)
    tracking.client().set_registered_model_alias(NAME, "champion", "1")
    assert registered(1, folders.targets_of(1, flip=0.1), min_auroc=1)["reason"] == "version 1 was made the champion by hand"
    assert versions() == {"1": ["champion"]}


def test_other_test_images_refuse_the_comparison(registered: Register, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    registered(1, folders.targets_of(1, flip=0.4), min_auroc=0)
    registration = registered(2, folders.targets_of(2), first_image=500)
    assert registration["alias"] == "challenger"
    assert registration["difference"] is None
    assert "other images (50 and 50 images, 0 in common)" in registration["reason"]
    assert registration["reason"] in caplog.text
    assert versions()["1"] == ["champion"]


def test_a_champion_made_by_hand_has_nothing_to_be_compared_with(registered: Register) -> None:
    client = tracking.client()
    client.create_registered_model(NAME)
    client.create_model_version(NAME, "s3://somewhere/else")
    client.set_registered_model_alias(NAME, "champion", "1")
    registration = registered(1, folders.targets_of(1))
    assert (registration["version"], registration["alias"], registration["champion_before"]) == ("2", "challenger", "1")
    assert "test_predictions.parquet" in registration["reason"]


def test_registering_again_keeps_version_and_alias(registered: Register) -> None:
    first = registered(1, folders.targets_of(1))
    again = registered(1, folders.targets_of(1))
    assert (again["reused"], again["version"], again["alias"], again["reason"]) == (True, "1", "champion", first["reason"])
    assert versions() == {"1": ["champion"]}


def test_a_lower_floor_promotes_the_same_version(registered: Register) -> None:
    registered(1, folders.targets_of(1, flip=0.1), min_auroc=1)
    assert versions() == {"1": ["challenger"]}
    registered(1, folders.targets_of(1, flip=0.1), min_auroc=0.5)
    assert versions() == {"1": ["champion"]}


@pytest.mark.parametrize("broken", ["log_model_artifacts", "finalize_logged_model", "create_model_version", "set_registered_model_alias"])
def test_registration_can_be_repeated_after_any_interruption(
    registered: Register, broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, stop)
        with pytest.raises(Interrupted):
            registered(1, folders.targets_of(1))
    registered(1, folders.targets_of(1))

    assert versions() == {"1": ["champion"]}
    client = tracking.client()
    run = client.get_run(client.get_model_version(NAME, "1").run_id)
    assert run.info.status == "FINISHED"
    assert len(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")) == 1
    logged = Path(mlflow.artifacts.download_artifacts(client.get_model_version(NAME, "1").source, dst_path=str(tmp_path / "logged")))
    assert _digests(tmp_path / "out" / "model") == _digests(logged)


def _digests(folder: Path) -> dict[str, str]:
    """Returns the digests of the files of a packed model, but the one that MLflow's client writes on download."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "registered_model_meta"]
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in paths}


def test_mismatched_inputs_are_refused(tmp_path: Path) -> None:
    model = folders.write_model(tmp_path / "model", 1, folders.targets_of(1))
    evaluation = folders.write_evaluation(tmp_path / "evaluation", model)
    other = folders.write_model(tmp_path / "other", 2, folders.targets_of(1))
    changed = Path(folders.write_model(tmp_path / "changed", 1, folders.targets_of(1)))
    (changed / "model.safetensors").write_bytes(Path(other, "model.safetensors").read_bytes())

    def refused(model: str, evaluation: str) -> str:
        with pytest.raises(UserError) as error:
            register.run(model=model, evaluation=evaluation, out=str(tmp_path / "out"), **Params().arguments("register"))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "evaluates other predictions" in refused(other, evaluation)
    assert "model.safetensors: does not match model.json" in refused(str(changed), evaluation)
    detection = Path(folders.write_evaluation(tmp_path / "detection", model))
    (detection / "metrics.json").write_text('{"detect_test_map": 0.3}')
    assert "has no classify_test_auroc_macro" in refused(model, str(detection))
    assert "must be the output folder of classify" in refused(evaluation, evaluation)
