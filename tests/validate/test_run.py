import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from components.common.errors import UserError
from components.common.formats.shards import decode
from components.common.runs import storage
from components.evaluate import run as evaluate
from components.params import Params
from components.preprocess import run as preprocess
from components.register import run as register
from components.simulate import run as simulate
from components.validate import run as validate
from tests.register import folders

NAME = "validate-test"
PARAMS = Params.model_validate(
    {
        "runtime": {"workers": 1},
        "simulate": {"patients": 12, "size": 80},
        "preprocess": {"size": folders.SIZE, "parts": 2},
        "evaluate": {"resamples": 100, "min_positives": 1},
        "register": {"name": NAME, "min_auroc": 0},
    }
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with labels of both findings of the model."""
    folder = tmp_path_factory.mktemp("raw") / "cohort"
    simulate.run(out=str(folder), **PARAMS.arguments("simulate"))
    labels = pd.read_csv(folder / "labels.csv")
    for period, finding in enumerate(folders.FINDINGS, 2):
        labels[finding] = (np.arange(len(labels)) % period == 0).astype(int)
    labels[["image", *folders.FINDINGS]].to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = folders.write_model(tmp_path / "model", 1, folders.targets_of(1, flip=0.2))
    Path(folder, "history.csv").write_text("")
    return folder


def run(model: str, out: Path, **cohort: Any) -> dict[str, Any]:
    """Validates a model and returns the metrics of the evaluation."""
    validate.run(model=model, out=str(out), **cohort, **PARAMS.arguments("validate"))
    found: dict[str, Any] = json.loads((out / "evaluation" / "metrics.json").read_text())
    return found


def test_a_registered_model_keeps_its_thresholds_elsewhere(model: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.skip_onnx(monkeypatch)
    evaluation = tmp_path / "evaluation"
    evaluate.run(predictions=[model], out=str(evaluation), **PARAMS.arguments("evaluate"))
    register.run(model=model, evaluation=str(evaluation), out=str(tmp_path / "r"), **PARAMS.arguments("register"))

    found = run(f"models:/{NAME}@champion", tmp_path / "registry", raw=str(raw))

    training = json.loads((evaluation / "metrics.json").read_text())
    rows = pd.read_parquet(tmp_path / "registry" / "predictions" / "predictions.parquet")
    page = (tmp_path / "registry" / "evaluation" / "report.html").read_text()
    for finding in folders.FINDINGS:
        threshold = found[f"classify_val_threshold_{finding}"]
        assert threshold == training[f"classify_val_threshold_{finding}"]
        target, score = rows[f"target_{finding}"], rows[f"score_{finding}"]
        assert found[f"classify_test_sensitivity_{finding}"] == pytest.approx((score[target == 1] >= threshold).mean())
        assert found[f"classify_test_specificity_{finding}"] == pytest.approx((score[target == 0] < threshold).mean())
        assert found[f"classify_test_auroc_{finding}"] == pytest.approx(roc_auc_score(target, score))
        there, here = (f"{metrics[f'classify_test_auroc_{finding}']:.3f}" for metrics in (training, found))
        cells = re.findall(
            rf'<tr><th scope="row">{finding}</th><td>(training|this one)</td><td>(.+?)</td><td>(.+?)</td><td>([0-9.]+)', page
        )
        assert [(cohort, auroc) for cohort, _, _, auroc in cells] == [("training", there), ("this one", here)]
        counts = [f"{metrics[f'classify_test_{kind}_{finding}']:g}" for metrics in (training, found) for kind in ("positives", "negatives")]
        assert [count for _, pair, _, _ in cells for count in pair.split(" / ")] == counts
    assert f"{NAME} version 1 was trained on" in " ".join(page.split())

    same = [run(str(tmp_path / "r"), tmp_path / "export", raw=str(raw)), run(model, tmp_path / "folder", raw=str(raw))]
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    same.append(run(model, tmp_path / "from-shards", shards=[str(tmp_path / "shards")]))
    assert same == 3 * [found]


def test_labels_of_other_names_are_refused_before_scoring(model: str, raw: Path, tmp_path: Path) -> None:
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    path = tmp_path / "shards" / "manifest.json"
    for findings, sentence in (
        (
            ["TB", "Silicosis"],
            "labels of TB, Silicosis, the model predicts Effusion, Nodule; rename the columns of labels.csv, or the class folders",
        ),
        ([], "the cohort has no labels; add labels.csv with the columns image, Effusion, Nodule"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "findings": findings}))
        with pytest.raises(UserError, match=sentence):
            run(model, tmp_path / "out", shards=[str(tmp_path / "shards")])


def test_a_finding_without_labels_is_named(model: str, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "findings": ["Effusion", "Knot"]}))
    assert run(model, tmp_path / "out", shards=[str(tmp_path / "shards")])["classify_test_auroc_Nodule"] is None
    assert "no labels of Nodule: scored, but not to be evaluated (labels: Effusion, Knot)" in caplog.text


def test_images_of_the_training_are_counted(model: str, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    images = [decode(row) for path in (tmp_path / "shards").glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    known = [hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()[:16] for image in images[:3]]
    Path(model, "images.txt").write_text("".join(f"{digest}\n" for digest in [*known, "0" * 16]))
    run(model, tmp_path / "out", raw=str(raw))
    page = (tmp_path / "out" / "evaluation" / "report.html").read_text()
    assert f"3 images of {len(images)} have the same pixels" in page
    assert "3 images are in the model's training cohort" in caplog.text


def test_shards_that_do_not_fit_are_refused(model: str, raw: Path, tmp_path: Path) -> None:
    large = PARAMS.model_copy(update={"preprocess": PARAMS.preprocess.model_copy(update={"size": 64})})
    preprocess.run(raw=str(raw), out=str(tmp_path / "large"), **large.arguments("preprocess"))
    with pytest.raises(UserError, match=r"images of 64 pixels and 8 bits; run preprocess with preprocess\.size=48"):
        run(model, tmp_path / "out", shards=[str(tmp_path / "large")])
    preprocess.run(raw=str(raw), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    described = json.loads(Path(model, "model.json").read_text())
    described["inputs"] = {"shards": storage.digest_file(tmp_path / "shards" / "manifest.json")}
    Path(model, "model.json").write_text(json.dumps(described))
    for cohort in ({"shards": [str(tmp_path / "shards")]}, {"raw": str(raw)}):
        with pytest.raises(UserError, match="the model was trained on these images"):
            run(model, tmp_path / "out", **cohort)
    with pytest.raises(UserError, match="give either --raw or --shards"):
        run(model, tmp_path / "out")
