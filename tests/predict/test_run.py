import json
import re
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.__main__ import main
from components.classify import run as classify
from components.common.errors import UserError
from components.common.formats.appearance import FEATURES
from components.common.formats.shards import decode
from components.evaluate import run as evaluate
from components.params import Params
from components.predict import run as predict
from components.preprocess import run as preprocess
from components.register import run as register
from components.simulate import run as simulate
from tests.conftest import MakeShards
from tests.register import folders

NAME = "predict-test"


@pytest.fixture(scope="module")
def params() -> Params:
    content: dict[str, Any] = {
        "runtime": {"workers": 1},
        "simulate": {"patients": 12, "size": 80},
        "preprocess": {"size": 96, "parts": 2},  # differs from the size of the model
        "evaluate": {"resamples": 100, "min_positives": 1},
        "register": {"name": NAME, "min_auroc": 0},
    }
    return Params.model_validate(content)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A folder with phantoms, a text file, and labels for one of the two findings of the model."""
    folder = tmp_path_factory.mktemp("raw") / "cohort"
    simulate.run(out=str(folder), **params.arguments("simulate"))
    (folder / "notes.txt").write_text("no radiograph")
    labels = pd.read_csv(folder / "labels.csv")
    labels["Effusion"] = np.arange(len(labels)) % 2
    labels[["image", "Effusion"]].to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    return folders.write_model(tmp_path / "model", 1, folders.targets_of(1))


def test_an_external_cohort_is_scored_and_evaluated(
    model: str, raw: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.skip_onnx(monkeypatch)
    register.run(
        model=model,
        evaluation=folders.write_evaluation(tmp_path / "evaluation", model),
        out=str(tmp_path / "r"),
        **params.arguments("register"),
    )

    for name, source in (("registry", f"models:/{NAME}@champion"), ("folder", model), ("export", str(tmp_path / "r"))):
        predict.run(model=source, raw=str(raw), out=str(tmp_path / name), **params.arguments("predict"))

    table = pd.read_parquet(tmp_path / "registry" / "predictions.parquet").set_index("image_id")
    same = Params.model_validate(
        {**params.model_dump(by_alias=True), "preprocess": {**params.preprocess.model_dump(), "size": folders.SIZE}}
    )
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **same.arguments("preprocess"))
    rows = pd.concat(map(pd.read_parquet, (tmp_path / "shards").glob("part-*.parquet"))).set_index("image_id")
    assert sorted(table.index) == sorted(rows.index)
    network = folders.network(1)
    expected = np.concatenate([folders.scores(network, decode(rows.loc[image].to_dict())[None]) for image in table.index])
    np.testing.assert_allclose(table[["score_Effusion", "score_Nodule"]], expected, atol=1e-4)
    assert set(table["split"]) == {"test"}
    np.testing.assert_array_equal(table["target_Effusion"], [rows.loc[image]["labels"][0] for image in table.index])
    assert table["target_Nodule"].isna().all()
    for name in ("folder", "export"):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name / "predictions.parquet").set_index("image_id"), table)

    evaluate.run(predictions=[str(tmp_path / "registry")], out=str(tmp_path / "e"), **params.arguments("evaluate"))
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["classify_test_images"] == len(table)
    assert 0 <= metrics["classify_test_auroc_Effusion"] <= 1


def test_images_and_the_backbone_are_read_once(
    make_shards: MakeShards, tiny: Params, pretrained: str, tmp_path: Path, decoded_images: list[None], files_read: Counter[str]
) -> None:
    shards = [make_shards()]
    probe = tiny.model_copy(update={"classify": tiny.classify.model_copy(update={"mode": "linear"})})
    classify.run(shards=shards, backbone=pretrained, out=str(tmp_path / "model"), **probe.arguments("classify"))
    decoded_images.clear()
    files_read.clear()
    arguments = tiny.arguments("predict")
    predict.run(model=str(tmp_path / "model"), shards=shards, backbone=pretrained, out=str(tmp_path / "out"), **arguments)
    assert len(decoded_images) == 60
    assert {name: files_read[f"{pretrained}/backbone.{name}"] for name in ("json", "safetensors")} == {"json": 1, "safetensors": 1}
    rows = pd.read_parquet(tmp_path / "out" / "appearance.parquet")
    assert rows["image_id"].tolist() == pd.read_parquet(tmp_path / "out" / "predictions.parquet")["image_id"].tolist()
    assert rows["features"].map(len).eq(FEATURES).all() and len(rows) == 60


def test_nothing_is_dropped_silently(model: str, raw: Path, params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predict.run(model=model, raw=str(raw), out=str(tmp_path / "out"), **params.arguments("predict"))
    quarantine = pd.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert quarantine[["path", "reason"]].values.tolist() == [["notes.txt", "not_dicom"]]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["rows"] + metrics["quarantined"] + metrics["duplicates"] == metrics["files"]
    assert metrics["rows"] == len(pd.read_parquet(tmp_path / "out" / "predictions.parquet"))
    assert "1 files are not scored (not_dicom 1)" in caplog.text
    assert "no labels of Nodule" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [
            "appearance.parquet",
            "history.csv",
            "manifest.json",
            "metrics.json",
            "model.json",
            "predictions.parquet",
            "quarantine.parquet",
            "report.html",
            "run.json",
        ]
    )


def test_models_that_cannot_be_used(model: str, raw: Path, params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: str) -> str:
        with pytest.raises(UserError) as error:
            predict.run(model=source, raw=str(raw), out=str(tmp_path / "out"), **params.arguments("predict"))
        return str(error.value)

    assert "has no model.json" in refused(str(raw))
    assert "models:/unknown@champion: MLflow at sqlite" in refused("models:/unknown@champion")
    content = json.loads(Path(model, "model.json").read_text())
    Path(model, "model.json").write_text(json.dumps(content | {"sha256": "0"}))
    assert "model.safetensors does not match" in refused(model)
    Path(model, "model.json").write_text(json.dumps(content | {"task": "detect"}))
    assert re.search(r"model\.json: lacks detector, without which the network cannot be built; run detect again", refused(model))
    Path(model, "model.json").write_text(json.dumps(content | {"task": "segment"}))
    assert "is of a segment model" in refused(model)
    assert main(["predict", "--model", model, "--raw", str(raw), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pseudonyms_are_under_the_key_of_the_environment(
    model: str, raw: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", "k" * 32)
    predict.run(model=model, raw=str(raw), out=str(tmp_path / "keyed"), **params.arguments("predict"))
    monkeypatch.delenv("CXR_PSEUDONYM_KEY")
    predict.run(model=model, raw=str(raw), out=str(tmp_path / "public"), **params.arguments("predict"))
    keyed, public = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("keyed", "public"))
    assert not set(keyed["patient_id"]) & set(public["patient_id"])


def test_mlflow_holds_no_path_of_an_input_or_output(
    model: str, raw: Path, params: Params, tmp_path: Path, own_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    evaluation = folders.write_evaluation(tmp_path / "evaluation", model)
    register.run(model=model, evaluation=evaluation, out=str(tmp_path / "registered"), **params.arguments("register"))
    predict.run(model=model, raw=str(raw), out=str(tmp_path / "predicted"), **params.arguments("predict"))
    evaluate.run(predictions=[str(tmp_path / "predicted")], out=str(tmp_path / "evaluated"), **params.arguments("evaluate"))

    with sqlite3.connect(own_mlflow) as connection:
        held = {"database": "\n".join(connection.iterdump()).encode()}
    held |= {str(path): path.read_bytes() for path in (own_mlflow.parent / "mlruns").rglob("*") if path.is_file()}
    assert b"metric" in held["database"] and any(name.endswith("MLmodel") for name in held)
    for folder in (tmp_path, raw):
        assert [name for name, content in held.items() if str(folder).encode() in content] == []
