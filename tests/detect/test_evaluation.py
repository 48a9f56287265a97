"""Evaluation of output folders of detect."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from components.common.errors import UserError
from components.common.statistics.arrays import Floats
from components.common.statistics.detection_matching import ImageBoxes
from components.evaluate.run import run
from components.params import Params
from tests.coco import coco_average_precision

CLASSES = ["Nodule <small>", "Effusion", "Rare"]
KEYS = ["Nodule _small_-b2e4f93d", "Effusion", "Rare"]  # their names in metrics
PARAMS = Params.model_validate({"evaluate": {"resamples": 200}})
BOX = pa.struct([("label", pa.string()), *((name, pa.float32()) for name in ("x", "y", "width", "height"))])
SCORED = pa.struct([*BOX, ("score", pa.float32())])
Rows = list[dict[str, Any]]
MakeDetections = Callable[..., str]


@pytest.fixture
def make_detections(tmp_path: Path) -> MakeDetections:
    """Returns a function that writes an output folder of detect; `change` may edit the rows of predictions.parquet."""

    def make(name: str = "detect", change: Callable[[Rows], object] | None = None, skill: float = 0.7, seed: int = 0) -> str:
        folder = tmp_path / name
        folder.mkdir()
        rows = _rows(skill, seed)
        if change:
            change(rows)
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        kinds = {"boxes": pa.list_(SCORED), "targets": pa.list_(BOX)}
        pq.write_table(pa.table({key: pa.array(values, kinds.get(key)) for key, values in columns.items()}), folder / "predictions.parquet")
        (folder / "model.json").write_text(json.dumps({"task": "detect", "arch": "resnet18", "classes": CLASSES, "best_epoch": 2}))
        (folder / "run.json").write_text(json.dumps({"stage": "detect", "mlflow_run_id": None}))
        (folder / "history.csv").write_text("epoch,loss,val_map_50\n1,0.9,0.3\n2,0.7,0.4\n")
        return str(folder)

    return make


def _rows(skill: float, seed: int) -> Rows:
    """Returns one to three images per patient with up to three boxes per image; `Rare` occurs in the validation split only."""
    truth, guess = np.random.default_rng(0), np.random.default_rng([1, seed])
    rows = []
    for patient in range(40):
        split = "val" if patient % 3 == 0 else "test"
        for _ in range(truth.integers(1, 4)):
            labels = truth.integers(0, 2 if split == "test" else 3, truth.integers(0, 4))
            targets = [_box(truth, CLASSES[label]) for label in labels]
            found = [
                {**box, "x": box["x"] + guess.uniform(-3, 3), "score": guess.uniform(0.3, 1)} for box in targets if guess.random() < skill
            ]
            found += [{**_box(guess, CLASSES[guess.integers(3)]), "score": guess.uniform(0, 0.8)} for _ in range(guess.integers(0, 4))]
            rows.append(
                {"image_id": f"{len(rows):032x}", "patient_id": f"{patient:032x}", "split": split, "boxes": found, "targets": targets}
            )
    common = {"task": "detect", "view": "PA", "sex": "F", "age": 50.0, "manufacturer": "MAKER"}
    return [{**row, **common} for row in rows]


def _box(rng: np.random.Generator, label: str) -> dict[str, Any]:
    sizes = rng.uniform(10, 25, 2)
    return {"label": label, "x": rng.uniform(0, 60), "y": rng.uniform(0, 60), "width": sizes[0], "height": sizes[1]}


def evaluate(*folders: str, out: Path, baseline: str | None = None) -> dict[str, float]:
    run(predictions=list(folders), out=str(out), **PARAMS.arguments("evaluate"), baseline=[baseline] if baseline else None)
    content: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return content


def rows_of_test(folder: str) -> Rows:
    return [row for row in pq.read_table(Path(folder, "predictions.parquet")).to_pylist() if row["split"] == "test"]


def coco_precision(rows: Rows) -> Floats:
    """Returns the average precision by pycocotools, (T, classes)."""
    images = [
        ImageBoxes(
            np.array([[box[name] for name in BOX.names[1:]] for box in row["boxes"]], float).reshape(-1, 4),
            np.array([box["score"] for box in row["boxes"]], float),
            np.array([CLASSES.index(box["label"]) for box in row["boxes"]], int),
            np.array([[box[name] for name in BOX.names[1:]] for box in row["targets"]], float).reshape(-1, 4),
            np.array([CLASSES.index(box["label"]) for box in row["targets"]], int),
        )
        for row in rows
    ]
    return coco_average_precision(images, len(CLASSES))


def test_metrics_agree_with_pycocotools_and_scikit_learn(make_detections: MakeDetections, tmp_path: Path) -> None:
    folder = make_detections()
    found = evaluate(folder, out=tmp_path / "out")
    rows = rows_of_test(folder)
    precision = coco_precision(rows)
    assert found["detect_test_map_50"] == pytest.approx(np.nanmean(precision[0]), abs=1e-9)
    assert found["detect_test_map"] == pytest.approx(np.nanmean(precision), abs=1e-9)
    assert found["detect_test_ap_50_Effusion"] == pytest.approx(precision[0, 1], abs=1e-9)
    assert found["detect_test_ap_Effusion"] == pytest.approx(precision[:, 1].mean(), abs=1e-9)
    assert found["detect_test_ap_50_Rare"] is None
    positive = [bool(row["targets"]) for row in rows]
    surest = [max((box["score"] for box in row["boxes"]), default=0.0) for row in rows]
    assert found["detect_test_image_auroc"] == pytest.approx(roc_auc_score(positive, surest))
    assert found["detect_test_images"] == len(rows)
    assert found["detect_test_boxes"] == sum(len(row["targets"]) for row in rows)


def test_intervals_lie_around_the_estimates(make_detections: MakeDetections, tmp_path: Path) -> None:
    found = evaluate(make_detections(), out=tmp_path / "out")
    for name in ("map_50", "map", "froc_0.25", "froc_0.5", "froc_1", "froc_2", "image_auroc", *map("ap_50_{}".format, KEYS[:2])):
        low, estimate, high = (found[f"detect_test_{name}{end}"] for end in ("_low", "", "_high"))
        assert 0 < low <= estimate <= high <= 1, name
        assert low < high, name


def test_perfect_and_hopeless(make_detections: MakeDetections, tmp_path: Path) -> None:
    def perfect(rows: Rows) -> None:
        for row in rows:
            row["boxes"] = [{**box, "score": 1.0} for box in row["targets"]]

    def hopeless(rows: Rows) -> None:
        for row in rows:
            row["boxes"] = []

    best = evaluate(make_detections("perfect", perfect), out=tmp_path / "a")
    worst = evaluate(make_detections("hopeless", hopeless), out=tmp_path / "b")
    for name in ("map_50", "map", "froc_0.25", "froc_2"):
        assert [best[f"detect_test_{name}{end}"] for end in ("_low", "", "_high")] == [1.0] * 3
        assert [worst[f"detect_test_{name}{end}"] for end in ("_low", "", "_high")] == [0.0] * 3
    assert best["detect_test_image_auroc"] == 1.0
    assert worst["detect_test_image_auroc"] == 0.5


def test_images_that_are_not_known_are_left_out(make_detections: MakeDetections, tmp_path: Path) -> None:
    def hide(rows: Rows) -> None:
        for row in rows[::4]:
            row["targets"] = None

    def drop(rows: Rows) -> None:
        del rows[::4]

    hidden = evaluate(make_detections("hidden", hide), out=tmp_path / "a")
    dropped = evaluate(make_detections("dropped", drop), out=tmp_path / "b")
    assert hidden.pop("detect_test_images_unknown") > 0 and hidden.pop("detect_val_images_unknown") > 0
    assert dropped.pop("detect_test_images_unknown") == dropped.pop("detect_val_images_unknown") == 0
    assert hidden == dropped


def test_report_and_curves(make_detections: MakeDetections, tmp_path: Path) -> None:
    found = evaluate(make_detections(), out=tmp_path / "out")
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{found['detect_test_map_50']:.3f}" in report
    assert "Nodule &lt;small&gt;" in report and "Nodule <small>" not in report
    assert "no box of Rare" in report
    with (tmp_path / "out" / "froc.csv").open() as file:
        points = [row for row in csv.DictReader(file) if row["class"] == "all"]
    reached = [float(row["sensitivity"]) for row in points if float(row["false_positives"]) <= 1]
    assert max(reached) == pytest.approx(found["detect_test_froc_1"], abs=1e-6)
    assert {row["class"] for row in csv.DictReader((tmp_path / "out" / "froc.csv").open())} == {"all", *CLASSES[:2]}


def test_a_model_beside_its_baseline(make_detections: MakeDetections, tmp_path: Path) -> None:
    good, bad = make_detections("good", skill=1.0), make_detections("bad", skill=0.3, seed=1)
    found = evaluate(good, out=tmp_path / "a", baseline=bad)
    alone = evaluate(bad, out=tmp_path / "b")
    difference = found["detect_difference_map_50"]
    assert difference == pytest.approx(found["detect_test_map_50"] - alone["detect_test_map_50"])
    assert found["detect_difference_map_50_low"] < difference < found["detect_difference_map_50_high"]
    assert found["detect_difference_map_50_p"] < 0.05
    assert found["detect_difference_froc_1_p"] <= found["detect_difference_froc_1_p_holm"]
    same = evaluate(good, out=tmp_path / "c", baseline=good)
    assert same["detect_difference_map_50"] == same["detect_difference_map_50_high"] == 0
    assert same["detect_difference_map_50_p"] == 1


def test_other_boxes_are_not_compared(make_detections: MakeDetections, tmp_path: Path) -> None:
    def move(rows: Rows) -> None:
        next(row for row in rows if row["split"] == "test" and row["targets"])["targets"][0]["x"] += 1

    def drop(rows: Rows) -> None:
        rows.remove(next(row for row in rows if row["split"] == "test"))

    with pytest.raises(UserError, match="tested on other boxes"):
        evaluate(make_detections(), out=tmp_path / "a", baseline=make_detections("moved", move))
    with pytest.raises(UserError, match="tested on other images"):
        evaluate(make_detections("again"), out=tmp_path / "a", baseline=make_detections("fewer", drop))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1]["boxes"].append({**_box(np.random.default_rng(0), "Mass"), "score": 0.5}), "a box of the class Mass"),
        (lambda rows: rows[1]["boxes"].append({**_box(np.random.default_rng(0), "Rare"), "score": 1.5}), "not a probability"),
        (
            lambda rows: rows[1]["boxes"].append({"label": "Rare", "x": 1, "y": 1, "width": 0, "height": 2, "score": 0.5}),
            "empty or not finite",
        ),
        (lambda rows: [row.update(targets=None) for row in rows], "no test image has known boxes"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(
    make_detections: MakeDetections, tmp_path: Path, change: Callable[[Rows], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(make_detections(change=change), out=tmp_path / "out")


def test_a_split_without_boxes_says_so(make_detections: MakeDetections, tmp_path: Path) -> None:
    found = evaluate(make_detections(change=lambda rows: [row.update(targets=[]) for row in rows]), out=tmp_path / "out")
    assert found["detect_test_map_50"] is None and found["detect_test_froc_1"] is None
    assert "no box of Effusion" in (tmp_path / "out" / "report.html").read_text()
