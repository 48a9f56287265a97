import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from components.classify import frozen, training
from components.classify import run as classify
from components.common.errors import UserError
from components.common.formats.shards import decode, square
from components.common.runs import signals
from components.common.runs.shards import open_shards
from components.common.runs.storage import digest_file
from components.common.training import backbones, devices
from components.common.training.neighbours import TEMPERATURE
from components.common.training.reader import Reader
from components.evaluate import run as evaluate
from components.params import Params, load
from components.register import run as register
from tests.conftest import FINDINGS, MakeShards, replace_part


def changed(params: Params, **update: object) -> Params:
    return params.model_copy(update={"classify": params.classify.model_copy(update=update)})


def test_learns_visible_findings(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    out = tmp_path / "out"
    classify.run(shards=[make_shards(images=200)], out=str(out), **changed(tiny, epochs=5).arguments("classify"))

    table = pq.read_table(out / "predictions.parquet").to_pandas()
    assert table.columns.tolist()[:8] == ["image_id", "patient_id", "split", "task", "view", "sex", "age", "manufacturer"]
    assert set(table["split"]) == {"val", "test"}
    assert set(table["task"]) == {"classify"}
    test = table[table["split"] == "test"]
    for finding in FINDINGS:
        known = test[f"target_{finding}"].notna()
        assert roc_auc_score(test[f"target_{finding}"][known], test[f"score_{finding}"][known]) > 0.8


def test_scores_agree_with_the_saved_model(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    shards = make_shards()
    classify.run(shards=[shards], out=str(tmp_path / "out"), **tiny.arguments("classify"), backbone=pretrained)

    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["findings"] == FINDINGS
    assert described["normalisation"] == {"mean": 0.25, "std": 0.5}  # that of the backbone, not of the shards
    network = backbones.build("resnet18")
    network.fc = torch.nn.Linear(512, 2)
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    network.eval()
    images = [decode(row) for path in Path(shards).glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    digests = [hashlib.sha256(f"{image.shape}{image.dtype}".encode() + image.tobytes()).hexdigest()[:16] for image in images]
    assert (tmp_path / "out" / "images.txt").read_text().split() == sorted(digests)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas().set_index("image_id")
    rows = pq.read_table(f"{shards}/part-00000.parquet").to_pylist()
    row = next(row for row in rows if row["split"] == "test")
    image = torch.from_numpy(square(decode(row), 32).astype(np.float32) / 255)
    with torch.no_grad():
        scores = torch.sigmoid(network((image[None, None] - 0.25) / 0.5))[0]
    assert table.loc[row["image_id"], ["score_Left", "score_Right"]].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    assert table.loc[row["image_id"], "target_Right"] == row["labels"][1]


def test_lineage_names_the_inputs(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    classify.run(shards=[make_shards()], out=str(tmp_path / "out"), **changed(tiny, epochs=1).arguments("classify"), backbone=pretrained)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(record["inputs"]) == ["backbone", "shards"]
    assert record["upstream_mlflow_run_ids"] == {"shards": "upstream-run", "backbone": "pretrain-run"}


MODES: dict[str, dict[str, Any]] = {
    "finetune": {"layer_decay": 0.7, "loss": "weighted_bce", "tta_flip": True},
    "finetune with patience": {"epochs": 6, "patience": 2, "loss": "focal", "label_fraction": 0.5, "positive_rate": {"Left": 0.3}},
}


@pytest.mark.slow
def test_a_compiled_network_trains_alike(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards, params = make_shards(), changed(tiny, epochs=1)
    compiled = params.model_copy(update={"runtime": params.runtime.model_copy(update={"compile": True})})
    for name, each in (("plain", params), ("compiled", compiled)):
        classify.run(shards=[shards], out=str(tmp_path / name), **each.arguments("classify"))
    plain, fused = (pd.read_csv(tmp_path / name / "history.csv") for name in ("plain", "compiled"))
    assert fused["loss"][0] == pytest.approx(plain["loss"][0], rel=1e-2)
    assert fused["val_auroc_macro"][0] == pytest.approx(plain["val_auroc_macro"][0], abs=0.05)
    assert load_file(tmp_path / "compiled" / "model.safetensors").keys() == load_file(tmp_path / "plain" / "model.safetensors").keys()


def relabel(shards: str, labels: Callable[[dict[str, Any]], list[float]]) -> None:
    """Replaces the labels of every row."""
    for path in Path(shards).glob("part-*.parquet"):
        table = pq.read_table(path)
        index = table.schema.get_field_index("labels")
        replaced = pa.array([labels(row) for row in table.to_pylist()], pa.list_(pa.float32()))
        replace_part(path, table.set_column(index, table.schema.field(index), replaced))


def predicted(out: Path) -> pd.DataFrame:
    table: pd.DataFrame = pq.read_table(out / "predictions.parquet").to_pandas()
    return table


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_continues_to_the_same_model(
    mode: str, make_shards: MakeShards, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: str
) -> None:
    shards, params = make_shards(), changed(tiny, **MODES[mode])
    if mode == "finetune with patience":
        monkeypatch.setattr(training, "macro_auroc", lambda targets, scores: 0.6)  # the first epoch remains the best
    classify.run(shards=[shards], out=str(tmp_path / "whole"), **params.arguments("classify"), backbone=pretrained)
    epochs = len((tmp_path / "whole" / "history.csv").read_text().splitlines()) - 1
    assert (epochs < params.classify.epochs) is ("patience" in mode)
    steps, stops = 0, {2, 6, 8}  # within epochs and after the last step of an epoch
    train_step = training.FineTuning.train_step

    def counted(self: training.FineTuning, *arguments: object) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps in stops:
            signals._stop.set()
        return train_step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training.FineTuning, "train_step", counted)
    for _ in stops:
        try:
            classify.run(shards=[shards], out=str(tmp_path / "stopped"), **params.arguments("classify"), backbone=pretrained)
        except signals.Interrupted:
            signals._stop.clear()
    if not (tmp_path / "stopped").exists():
        classify.run(shards=[shards], out=str(tmp_path / "stopped"), **params.arguments("classify"), backbone=pretrained)

    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["resumed"]
    for name in ("model.safetensors", "predictions.parquet", "model.json"):
        assert digest_file(tmp_path / "stopped" / name) == digest_file(tmp_path / "whole" / name)


def test_early_stopping_waits_for_its_patience(
    make_shards: MakeShards, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aurocs = iter([0.6, 0.7, 0.5, 0.7, 0.6, 0.9])
    monkeypatch.setattr(training, "macro_auroc", lambda targets, scores: next(aurocs))
    classify.run(
        shards=[make_shards()], out=str(tmp_path / "out"), **changed(tiny, epochs=40, patience=3, batch_size=36).arguments("classify")
    )
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 5
    assert json.loads((tmp_path / "out" / "model.json").read_text())["best_epoch"] == 2  # the first one wins ties


def test_linear_probe_does_not_change_the_backbone(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    """Its weights and batch norm statistics are unchanged bit by bit."""
    params = changed(tiny, mode="linear")
    classify.run(shards=[make_shards(images=200)], out=str(tmp_path / "out"), **params.arguments("classify"), backbone=pretrained)
    before, after = load_file(Path(pretrained, "backbone.safetensors")), load_file(tmp_path / "out" / "model.safetensors")
    assert set(after) - set(before) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    test = predicted(tmp_path / "out").query("split == 'test'").dropna()
    assert all(roc_auc_score(test[f"target_{finding}"], test[f"score_{finding}"]) > 0.7 for finding in FINDINGS)


def test_linear_probe_agrees_with_the_saved_model(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    """The regression on standardised features and the exported network give the same logits."""
    shards = open_shards([make_shards()])
    classify.run(
        shards=list(shards.folders), out=str(tmp_path / "out"), **changed(tiny, mode="linear").arguments("classify"), backbone=pretrained
    )
    metrics, saved = json.loads((tmp_path / "out" / "metrics.json").read_text()), load_file(tmp_path / "out" / "model.safetensors")
    task = frozen.LinearProbe(tiny.classify, shards, pretrained)
    (train, targets), val = task.labelled(), task.features(task.val).numpy()
    scaler = StandardScaler().fit(train.numpy())
    for index, finding in enumerate(FINDINGS):
        known = ~targets[:, index].isnan().numpy()
        expected = LogisticRegression(C=1 / metrics["strength"] / known.sum(), tol=1e-8, max_iter=5000)
        expected.fit(scaler.transform(train[known].numpy()), targets[known, index])
        logits = expected.decision_function(scaler.transform(val))
        head = val @ saved["fc.weight"][index].numpy() + saved["fc.bias"][index].numpy()
        np.testing.assert_allclose(head * metrics["temperature"], logits, rtol=1e-3, atol=1e-3)
        scores = predicted(tmp_path / "out").query("split == 'val'")[f"score_{finding}"]
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-head)), atol=1e-4)


def test_the_strength_of_the_penalty_is_the_best_on_val(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    folder, rng = make_shards(), np.random.default_rng(0)
    relabel(folder, lambda row: [1 - value if rng.random() < 0.2 else value for value in row["labels"]])
    params = changed(tiny, mode="linear")
    classify.run(shards=[folder], out=str(tmp_path / "out"), **params.arguments("classify"), backbone=pretrained)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    task = frozen.LinearProbe(params.classify, open_shards(folder), pretrained)
    (train, targets), val = task.labelled(), task.features(task.val).numpy()
    scaler = StandardScaler().fit(train.numpy())
    aurocs = []
    for strength in frozen.STRENGTHS:
        each = []
        for index in range(2):
            known, judged = ~targets[:, index].isnan().numpy(), ~np.isnan(task.val.labels()[:, index])
            fitted = LogisticRegression(C=1 / strength / known.sum(), tol=1e-8, max_iter=5000)
            fitted.fit(scaler.transform(train[known].numpy()), targets[known, index])
            each.append(roc_auc_score(task.val.labels()[judged, index], fitted.decision_function(scaler.transform(val[judged]))))
        aurocs.append(np.mean(each))
    assert metrics["strength"] == frozen.STRENGTHS[int(np.argmax(aurocs))]
    assert metrics["val_auroc_macro"] == pytest.approx(max(aurocs), abs=1e-6)
    assert aurocs[0] < max(aurocs)


@pytest.mark.parametrize(("mode", "passes"), [("linear", [2, 1]), ("knn", [1, 1])])
def test_images_are_decoded_once_for_features_and_once_per_node_for_digests(
    make_shards: MakeShards,
    tiny: Params,
    tmp_path: Path,
    pretrained: str,
    decoded_images: list[None],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    passes: list[int],
) -> None:
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    shards = make_shards()
    for number, expected in enumerate(passes):
        decoded_images.clear()
        params = changed(tiny, mode=mode, seed=number)
        classify.run(shards=[shards], out=str(tmp_path / f"{number}"), **params.arguments("classify"), backbone=pretrained)
        assert len(decoded_images) == 60 * expected
    if mode == "linear":
        assert (tmp_path / "0" / "images.txt").read_bytes() == (tmp_path / "1" / "images.txt").read_bytes()


def test_neighbours_vote_and_leave_no_model(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    shards = open_shards([make_shards()])
    params = changed(tiny, mode="knn")
    classify.run(shards=list(shards.folders), out=str(tmp_path / "out"), **params.arguments("classify"), backbone=pretrained)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["neighbours"] in (10, 20, 35)  # 36 training images
    task = frozen.NearestNeighbours(params.classify, shards, pretrained)
    (train, targets), test = task.labelled(), task.features(Reader(shards, "test"))
    rows = predicted(tmp_path / "out").query("split == 'test'")
    for index, finding in enumerate(FINDINGS):
        known = ~targets[:, index].isnan().numpy()
        voters = KNeighborsClassifier(min(metrics["neighbours"], known.sum()), weights=lambda d: np.exp((1 - d**2 / 2) / TEMPERATURE))
        voters.fit(normalize(train[known].numpy().astype(float)), targets[known, index])
        expected = voters.predict_proba(normalize(test.numpy().astype(float)))[:, 1]
        np.testing.assert_allclose(rows[f"score_{finding}"], expected, atol=1e-4)
    evaluate.run(predictions=2 * [str(tmp_path / "out")], out=str(tmp_path / "evaluation"), **params.arguments("evaluate"))
    assert "nearest neighbours" in (tmp_path / "evaluation" / "report.html").read_text()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(UserError, match=r"model\.json: has no weights, only predictions to evaluate \(mode knn\)"):
        register.run(
            model=str(tmp_path / "out"), evaluation=str(tmp_path / "evaluation"), out=str(tmp_path / "r"), **params.arguments("register")
        )


@pytest.mark.parametrize("mode", ["finetune", "linear", "knn"])
def test_a_finding_with_one_class_gets_its_prior(
    mode: str, make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards = make_shards()
    relabel(shards, lambda row: [row["labels"][0], 0.0 if row["split"] == "train" else row["labels"][1]])
    classify.run(shards=[shards], out=str(tmp_path / "out"), **changed(tiny, mode=mode).arguments("classify"), backbone=pretrained)
    assert "36 training images have only one class of Right" in caplog.text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["findings_trained"] == 1
    scores = predicted(tmp_path / "out")
    assert scores["score_Left"].nunique() > 3
    if mode != "finetune":
        np.testing.assert_allclose(scores["score_Right"], scores["score_Right"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mode": "linear", "loss": "focal"}, "mode linear takes no loss; set mode: finetune, or loss: bce"),
        ({"mode": "knn", "tta_flip": True}, "mode knn takes no tta_flip"),
    ],
)
def test_parameters_of_other_modes_are_refused(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"classify": section}))
    with pytest.raises(UserError, match=message):
        load(path)


def test_mirror_images_count_half(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    task = training.FineTuning(tiny.classify.model_copy(update={"tta_flip": True}), open_shards([make_shards()]), None)
    images = next(task.val.in_order(8)).images
    with torch.no_grad():
        both = [task.network.eval()(task.normalise(devices.to_unit(each, task.device))) for each in (images, images[:, :, ::-1].copy())]
    np.testing.assert_allclose(task.predict(task.network, task.val)[:8], (both[0] + both[1]).numpy() / 2, atol=1e-5)


def test_scores_are_calibrated_on_val(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """No temperature close to the fitted one gives a higher likelihood on the validation split."""
    classify.run(shards=[make_shards()], out=str(tmp_path / "out"), **tiny.arguments("classify"))
    temperature = json.loads((tmp_path / "out" / "model.json").read_text())["temperature"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["temperature"] == temperature != 1
    val = predicted(tmp_path / "out").query("split == 'val'")
    scores = np.concatenate([val.dropna(subset=[f"target_{each}"])[f"score_{each}"].to_numpy(float) for each in FINDINGS])
    targets = np.concatenate([val.dropna(subset=[f"target_{each}"])[f"target_{each}"].to_numpy(float) for each in FINDINGS])

    def likelihood(factor: float) -> float:
        return float(log_loss(targets, 1 / (1 + (1 / scores - 1) ** (1 / factor))))

    assert metrics["val_nll"] == pytest.approx(likelihood(1), rel=1e-5)
    assert metrics["val_nll_uncalibrated"] == pytest.approx(likelihood(1 / temperature), rel=1e-4)
    assert likelihood(1) <= min(likelihood(0.97), likelihood(1.03), likelihood(1 / temperature))


@pytest.mark.parametrize("mode", ["finetune", "linear", "knn"])
def test_test_labels_do_not_influence_training_or_selection(mode: str, make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Weights, best epoch, temperature, scores and thresholds are identical; only the metrics on the test split change."""
    clean, poisoned = make_shards("clean"), make_shards("poisoned")
    relabel(poisoned, lambda row: [1 - v for v in row["labels"]] if row["split"] == "test" else row["labels"])
    params = changed(tiny, mode=mode, epochs=3, patience=2, label_fraction=0.5, positive_rate={"Left": 0.4})
    measured = []
    for name, shards in (("a", clean), ("b", poisoned)):
        classify.run(shards=[shards], out=str(tmp_path / name), **params.arguments("classify"))
        evaluate.run(predictions=[str(tmp_path / name)], out=str(tmp_path / f"evaluation-{name}"), **params.arguments("evaluate"))
        measured.append(json.loads((tmp_path / f"evaluation-{name}" / "metrics.json").read_text()))
    a, b = (predicted(tmp_path / name) for name in "ab")
    assert a["target_Right"].tolist() != b["target_Right"].tolist()
    for name in ("metrics.json",) if mode == "knn" else ("model.safetensors", "metrics.json"):
        assert digest_file(tmp_path / "a" / name) == digest_file(tmp_path / "b" / name)
    described = [json.loads((tmp_path / name / "model.json").read_text()) for name in "ab"]
    assert described[0].pop("inputs") != described[1].pop("inputs")  # the digests of the shards
    assert described[0] == described[1]
    for finding in FINDINGS:
        assert a[f"score_{finding}"].tolist() == b[f"score_{finding}"].tolist()
        assert measured[0][f"classify_val_threshold_{finding}"] == measured[1][f"classify_val_threshold_{finding}"]
        assert measured[0][f"classify_test_auroc_{finding}"] == pytest.approx(1 - measured[1][f"classify_test_auroc_{finding}"])


def test_few_labels_make_smaller_batches(make_shards: MakeShards, tiny: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classify.run(shards=[make_shards()], out=str(tmp_path / "out"), **changed(tiny, label_fraction=0.1).arguments("classify"))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["train_images"] == 4  # two of eighteen patients
    assert "batches of 4 images" in caplog.text


def test_an_unknown_finding_in_positive_rate_is_refused(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classify\.positive_rate: Middle is not a finding"):
        classify.run(
            shards=[make_shards()], out=str(tmp_path / "out"), **changed(tiny, positive_rate={"Middle": 0.1}).arguments("classify")
        )


def test_shards_without_findings_are_refused(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    manifest = Path(shards) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "findings": []}))
    with pytest.raises(UserError, match="no findings; put a"):
        classify.run(shards=[shards], out=str(tmp_path / "out"), **tiny.arguments("classify"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": "test"}, r"the test split is empty .* raise preprocess\.test_fraction"),  # before hours of training
        ({"without": "val"}, r"the val split is empty .* raise preprocess\.val_fraction"),
        ({"images": 2}, r"the train split is empty \(patients: test 1\); add patients"),
    ],
)
def test_a_split_without_patients_is_refused(
    options: dict[str, Any], message: str, make_shards: MakeShards, tiny: Params, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        classify.run(shards=[make_shards(**options)], out=str(tmp_path / "out"), **tiny.arguments("classify"))
    assert not (tmp_path / "out.partial").exists()


def test_without_a_known_label_there_is_nothing_to_train_on(make_shards: MakeShards, tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "labels", lambda self: np.full((len(self), len(FINDINGS)), np.nan, np.float32))
    with pytest.raises(UserError, match="fewer than two labelled training images"):
        frozen.LinearProbe(tiny.classify, open_shards(make_shards()), None)
