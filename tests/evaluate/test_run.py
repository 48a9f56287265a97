import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from sklearn import metrics as sklearn

from components.common.errors import UserError
from components.common.runs.storage import digest_file
from components.evaluate.run import _cell, run
from components.params import Params
from tests.evaluate.conftest import FINDINGS, MakePredictions, Table

PARAMS = Params.model_validate({"evaluate": {"resamples": 200}})
COUNTED = FINDINGS[:2]
VOID = {"meta", "img", "circle", "line", "polyline", "br"}


class Page(HTMLParser):
    """Parses a report into tags and text; fails on tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def evaluate(*folders: str, out: Path) -> dict[str, float | None]:
    run(predictions=list(folders), out=str(out), **PARAMS.arguments("evaluate"))
    content: dict[str, float | None] = json.loads((out / "metrics.json").read_text())
    return content


def report(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_metrics_agree_with_scikit_learn(make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    found = evaluate(folder, out=tmp_path / "out")
    test = pq.read_table(Path(folder, "predictions.parquet")).to_pandas().query("split == 'test'")
    aurocs, precisions = [], []
    for finding, key in zip(COUNTED, ("Effusion", "Nodule _small_-b2e4f93d"), strict=True):
        rows = test.dropna(subset=[f"target_{finding}"])
        aurocs.append(sklearn.roc_auc_score(rows[f"target_{finding}"], rows[f"score_{finding}"]))
        precisions.append(sklearn.average_precision_score(rows[f"target_{finding}"], rows[f"score_{finding}"]))
        assert found[f"classify_test_auroc_{key}"] == pytest.approx(aurocs[-1])
        assert found[f"classify_test_ap_{key}"] == pytest.approx(precisions[-1])
        assert found[f"classify_test_positives_{key}"] == rows[f"target_{finding}"].sum()
    assert found["classify_test_auroc_macro"] == pytest.approx(np.mean(aurocs))
    assert found["classify_test_ap_macro"] == pytest.approx(np.mean(precisions))
    assert found["classify_test_images"] == len(test)
    assert found["classify_test_patients"] == test["patient_id"].nunique() == 40
    assert found["classify_test_findings_counted"] == 2


def test_thresholds_come_from_val_alone(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = evaluate(make_predictions(), out=tmp_path / "one")

    def invert_test(columns: Table) -> None:
        test = np.array(columns["split"]) == "test"
        target = columns["target_Effusion"]
        target[test] = 1 - target[test]

    inverted = evaluate(make_predictions("inverted", invert_test), out=tmp_path / "two")
    assert inverted["classify_test_accuracy_Effusion"] == pytest.approx(1 - (found["classify_test_accuracy_Effusion"] or 0))
    assert inverted["classify_val_auroc_macro"] == found["classify_val_auroc_macro"]


def test_intervals_lie_around_the_estimates(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = evaluate(make_predictions(skill=0.4), out=tmp_path / "out")
    for metric in ("auroc", "ap", "accuracy"):
        for name in ("macro", "Effusion"):
            low, estimate, high = (found[f"classify_test_{metric}_{name}{end}"] for end in ("_low", "", "_high"))
            assert low is not None and estimate is not None and high is not None
            assert 0 < low < estimate < high < 1
    assert found["classify_test_auroc_Absent"] is None and found["classify_test_auroc_Absent_low"] is None


def test_output_is_the_same_bytes_every_time(make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    evaluate(folder, out=tmp_path / "one")
    evaluate(folder, out=tmp_path / "two")
    names = {"metrics.json", "run.json", "roc.csv", "pr.csv", "reliability.csv", "subgroups.csv", "report.html"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names - {"run.json"}:
        assert digest_file(tmp_path / "one" / name) == digest_file(tmp_path / "two" / name)


def test_names_of_findings_are_no_formulas() -> None:
    cells = ["=1+1", "+x", "-x", "@x", "Mass", "1=1", "", -0.5, 3]
    assert [_cell(cell) for cell in cells] == ["'=1+1", "'+x", "'-x", "'@x", "Mass", "1=1", "", -0.5, 3]


def test_thinned_curves_keep_their_area(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = evaluate(make_predictions(), out=tmp_path / "out")
    with (tmp_path / "out" / "roc.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["finding"] == "Effusion"]
    x, y = ([float(row[name]) for row in rows] for name in ("fpr", "tpr"))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(found["classify_test_auroc_Effusion"], abs=1e-5)
    with (tmp_path / "out" / "pr.csv").open() as file:
        assert {row["finding"] for row in csv.DictReader(file)} == set(FINDINGS[:3])


def test_report_holds_the_numbers(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = evaluate(make_predictions(), out=tmp_path / "out")
    page = report(tmp_path / "out")
    for name, value in found.items():
        if value is not None and not name.endswith(("images", "patients", "counted")) and "itives_" not in name and "gatives_" not in name:
            assert f"{abs(value):.3f}" in page.text, name  # the minus is typographic
    assert "Nodule <small>" in page.text
    assert "Rare (3 positives)" in page.text and "Absent (0 positives)" in page.text
    assert "Included: Effusion and Nodule <small>." in page.text
    assert "git commit " + "c0ffee" * 6 in page.text
    assert "lr=0.0003" in page.text
    assert "Epoch 2 was chosen" in page.text


def test_report_stands_alone_and_tells_no_secrets(make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    patients = set(pq.read_table(Path(folder, "predictions.parquet"))["patient_id"].to_pylist())
    evaluate(folder, out=tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert not any(patient in html for patient in patients)
    for absent in (str(tmp_path), "http://", "https://", "@import", "url(", "2001-02-03", "run-of-classify", "51.25", "52.5"):
        assert absent not in html
    for attributes in (attributes for _, attributes in Page(html).tags):
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_pictures_are_described(make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    picture = cv2.imencode(".png", np.full((4, 5), 128, np.uint8))[1].tobytes()
    Path(folder, "figures", "saliency_map.png").write_bytes(picture)
    Path(folder, "figures", "notes.txt").write_text("no picture")
    evaluate(folder, out=tmp_path / "out")
    page = report(tmp_path / "out")
    assert [attributes["alt"] for attributes in page.named("img")] == ["Saliency map"]
    assert len(page.named("svg")) > 8
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.named("svg"))
    assert len(page.named("caption")) == len(page.named("table")) > 3


def test_two_models_side_by_side(make_predictions: MakePredictions, tmp_path: Path) -> None:
    good, poor = make_predictions("good", skill=2.0), make_predictions("poor", skill=0.5, seed=1)
    found = evaluate(good, poor, out=tmp_path / "out")
    assert (found["classify_test_auroc_macro"] or 0) > (found["classify_2_test_auroc_macro"] or 0)
    page = report(tmp_path / "out")
    assert "Classification of findings: side by side" in page.text
    assert {"classify", "classify_2"} <= {attributes.get("id") for attributes in page.named("h2")}
    with (tmp_path / "out" / "roc.csv").open() as file:
        assert {row["finding"] for row in csv.DictReader(file)} == {*FINDINGS[:3], *(f"2: {name}" for name in FINDINGS[:3])}
    inputs = json.loads((tmp_path / "out" / "run.json").read_text())["inputs"]
    assert list(inputs) == ["predictions", "model", "predictions_2", "model_2"]


def test_too_few_positives_give_no_macro_average(
    make_predictions: MakePredictions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = Params.model_validate({"evaluate": {"resamples": 100, "min_positives": 1000}})
    run(predictions=[make_predictions()], out=str(tmp_path / "out"), **params.arguments("evaluate"))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["classify_test_auroc_macro"] is None
    assert "No finding is included." in report(tmp_path / "out").text
    assert "no finding has 1000 positives" in caplog.text


def test_metrics_and_report_are_tracked_in_mlflow(make_predictions: MakePredictions, tmp_path: Path) -> None:
    found = evaluate(make_predictions(), out=tmp_path / "out")
    client = MlflowClient()
    run_id = json.loads((tmp_path / "out" / "run.json").read_text())["mlflow_run_id"]
    logged = client.get_run(run_id).data
    assert logged.metrics["classify_test_auroc_macro"] == found["classify_test_auroc_macro"]
    assert logged.tags["upstream.predictions.run_id"] == "run-of-classify"
    numbers = [found[f"classify_test_auroc_macro{end}"] for end in ("", "_low", "_high")]
    assert logged.tags["headline"] == "classify: Macro AUROC {:.3f} ({:.3f} to {:.3f})".format(*numbers)
    assert {file.path for file in client.list_artifacts(run_id)} == {"report.html", "roc.csv", "pr.csv", "reliability.csv", "subgroups.csv"}


def leak(columns: Table) -> None:
    columns["patient_id"][columns["split"].index("val")] = columns["patient_id"][columns["split"].index("test")]


def repeat(columns: Table) -> None:
    columns["image_id"][1] = columns["image_id"][0]


def forget_labels(columns: Table) -> None:
    for finding in FINDINGS:
        columns[f"target_{finding}"][np.array(columns["split"]) == "test"] = np.nan


def only_val(columns: Table) -> None:
    columns["split"] = ["val"] * len(columns["split"])


def logits(columns: Table) -> None:
    columns["score_Rare"] = columns["score_Rare"] * 9 - 3


def halves(columns: Table) -> None:
    columns["target_Rare"] = columns["target_Rare"] * 0 + 0.5


def train_rows(columns: Table) -> None:
    columns["split"][0] = "train"


def detection(columns: Table) -> None:
    columns["task"] = ["segment"] * len(columns["task"])


def two_tasks(columns: Table) -> None:
    columns["task"][0] = "detect"


def test_a_single_test_patient_is_a_warning(
    make_predictions: MakePredictions, tiny: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def one(columns: Table) -> None:
        rows = pd.DataFrame({name: list(values) for name, values in columns.items()})
        first = rows.loc[rows["split"] == "test", "patient_id"].iloc[0]
        columns |= rows[(rows["split"] == "val") | (rows["patient_id"] == first)].to_dict("list")

    run(predictions=[make_predictions(change=one)], out=str(tmp_path / "out"), **tiny.arguments("evaluate"))
    assert "predictions.parquet: only one patient is in the test split, so the intervals have no width; add patients" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns.pop("patient_id"), r"predictions\.parquet: lacks the column patient_id"),
        (lambda columns: columns.pop("score_Rare"), r"model\.json: .*score_Rare"),
        (leak, r"predictions\.parquet: 1 patient is in both val and test"),
        (repeat, r"predictions\.parquet: 1 rows repeat the image_id"),
        (forget_labels, r"predictions\.parquet: no patient of the test split has a known label"),
        (only_val, r"predictions\.parquet: the test split is empty"),
        (logits, r"predictions\.parquet: .* scores that are not probabilities"),
        (halves, r"predictions\.parquet: .* targets other than"),
        (train_rows, r"predictions\.parquet: holds the split train"),
        (detection, r"predictions\.parquet: written by segment, which is not a head"),
        (two_tasks, r"predictions\.parquet: holds several tasks"),
    ],
)
def test_invalid_predictions_are_refused(
    change: Callable[[Table], object], message: str, make_predictions: MakePredictions, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(make_predictions(change=change), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("predictions.parquet", b"no parquet", r"predictions\.parquet: not a Parquet file"),
        ("history.csv", b"epoch,loss\n1,low\n", r"history\.csv: line 2 is not numbers"),
        ("figures/x.png", b"no picture", r"figures/x\.png: not a PNG"),
        ("model.json", b"{", r"model\.json: not a JSON object"),
    ],
)
def test_broken_files_are_refused(name: str, content: bytes, message: str, make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    Path(folder, name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        evaluate(folder, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["predictions.parquet", "history.csv", "model.json", "run.json"])
def test_a_missing_file_is_refused(name: str, make_predictions: MakePredictions, tmp_path: Path) -> None:
    folder = make_predictions()
    Path(folder, name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        evaluate(folder, out=tmp_path / "out")
