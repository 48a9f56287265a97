"""References and drift of made-up scores and appearances; the real ones are made by preprocess and predict."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from scipy.stats import binom, ks_2samp

from components.__main__ import main
from components.common.dicom import recipe
from components.common.errors import UserError
from components.common.formats.appearance import FEATURES, HEADER, SCHEMA, WAVES, write_appearance
from components.common.formats.predictions import scores_of
from components.common.formats.reference import check_reference
from components.common.formats.shards import decode
from components.common.runs import tracking
from components.common.runs.shards import open_shards
from components.common.training.features import Extractor
from components.monitor import drift, quantities
from components.monitor.params import Monitor
from components.monitor.run import ALARM, reference, run
from components.predict.appearance import describe, measure
from tests import webhook
from tests.conftest import MakeShards
from tests.register import folders

Table = dict[str, Any]
PARAMS = Monitor(resamples=999, false_alarms=0.05)


def columns(images: int, seed: int) -> tuple[Table, Table]:
    """Returns columns of predictions and appearance of images of which every third is the second one of a patient."""
    rng = np.random.default_rng(seed)
    ids = [f"{int(number) + 2**127:032x}" for number in rng.permutation(images)]
    patients = [f"{seed}-{number - number % 3 // 2:06d}" for number in range(images)]
    predictions = {"image_id": ids, "patient_id": patients, "split": ["test"] * images, "task": ["classify"] * images,
                   "view": rng.choice(["PA", "AP"], images, p=[0.7, 0.3]).tolist(), "sex": rng.choice(["F", "M"], images).tolist(),
                   "age": rng.normal(55, 15, images).clip(18, 90).astype(np.float32),
                   "manufacturer": rng.choice(["ONE", "TWO", "THREE"], images, p=[0.5, 0.49, 0.01]).tolist(),
                   "score_Effusion": rng.beta(1, 4, images).astype(np.float32),
                  "target_Effusion": np.full(images, np.nan, np.float32)}  # fmt: skip
    appearance = {"image_id": ids, "photometric": ["MONOCHROME2"] * images, "source_height": rng.integers(2000, 2100, images),
                  "source_width": rng.integers(2000, 2100, images),
                  **{name: rng.normal(0.5, 0.05, images) for name in ("brightness", "contrast", "median", "dark", "bright")},
                  "waves": rng.normal(size=(images, WAVES * WAVES - 1)).tolist(),
                  "features": [None] * images, "backbone": [None] * images}  # fmt: skip
    return predictions, appearance


def write(folder: Path, images: int, seed: int, change: Callable[[Table, Table], object] = lambda *_: None) -> str:
    """Writes an output folder of predict."""
    predictions, appearance = columns(images, seed)
    change(predictions, appearance)
    folder.mkdir()
    pd.DataFrame(predictions).to_parquet(folder / "predictions.parquet")
    write_appearance(folder, pa.Table.from_pydict(appearance, SCHEMA))
    (folder / "model.json").write_text(json.dumps({"task": "classify", "sha256": "0" * 64}))
    (folder / "run.json").write_text(json.dumps({"stage": "predict"}))
    return str(folder)


@pytest.fixture
def known(tmp_path: Path) -> str:
    """A reference of 200 patients."""
    reference(predictions=write(tmp_path / "before", 300, 0), out=str(tmp_path / "reference"), params=PARAMS)
    return str(tmp_path / "reference")


def inverted(predictions: Table, appearance: Table) -> None:
    appearance["photometric"] = ["MONOCHROME1"] * len(appearance["photometric"])
    appearance["brightness"], appearance["waves"] = 0.8 - appearance["brightness"], (-np.array(appearance["waves"]) + 1).tolist()


SHIFTS: dict[str, tuple[set[str], Callable[[Table, Table], object]]] = {
    "none": (set(), lambda predictions, appearance: None),
    "children": ({"age"}, lambda predictions, appearance: predictions.update(age=predictions["age"] / 6)),
    "ages unknown": ({"age"}, lambda predictions, appearance: predictions.update(age=predictions["age"] * np.nan)),
    "inverted": ({"photometric", "brightness", "structure"}, inverted),
    "another view": ({"view"}, lambda predictions, appearance: predictions.update(view=["LATERAL"] * 60)),
    "a new maker": ({"manufacturer"}, lambda predictions, appearance: predictions.update(manufacturer=["FOUR"] * 60)),
    "another window": ({"contrast", "bright"}, lambda predictions, appearance: appearance.update(
        contrast=appearance["contrast"] * 1.5, bright=appearance["bright"] + 0.2)),
    "scores": ({"score_Effusion"}, lambda predictions, appearance: predictions.update(score_Effusion=predictions["score_Effusion"] + 0.3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIFTS)
def test_a_change_raises_an_alarm_about_what_has_changed(name: str, known: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, change = SHIFTS[name]
    batch = write(tmp_path / "now", 60, 1, change)
    assert run(reference=known, predictions=batch, out=str(tmp_path / "out"), params=PARAMS) == (ALARM if expected else 0)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    names = {key.removeprefix("p_") for key in metrics if key.startswith("p_")}
    assert metrics["alarm"] == bool(expected) and metrics["alarms"] == len(expected) and metrics["patients"] == 40
    assert expected <= {name for name in names if metrics[f"p_{name}"] <= PARAMS.false_alarms}
    assert {line.split(" ")[1] for line in re.findall(r"monitor: .* p .*", caplog.text)} == expected
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("Alarm: the images have changed" in page) == bool(expected) and "http" not in page
    predictions = pd.read_parquet(Path(batch, "predictions.parquet"))
    assert not [value for value in (*predictions["image_id"], *predictions["patient_id"]) if value in page]


@pytest.mark.parametrize(("name", "within", "messages"), [("children", "", 1), ("children", "run-1", 0), ("none", "", 0)])
def test_an_alarm_is_posted_unless_the_pipeline_does(
    name: str, within: str, messages: int, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", within)
    batch = write(tmp_path / "now", 60, 1, SHIFTS[name][1])
    with webhook.serve(monkeypatch, "teams") as posted:
        run(reference=known, predictions=batch, out=str(tmp_path / "out"), params=PARAMS)
    assert len(posted.messages) == messages
    for sent in posted.messages:
        webhook.check(sent, "teams")
        title, facts = sent["attachments"][0]["content"]["body"]
        assert title["text"] == "monitor: alarm" and facts["facts"][0]["value"].startswith("age (metadata): Kolmogorov-Smirnov distance")
    client = MlflowClient(tracking.uri())
    tags = client.get_run(json.loads((tmp_path / "out" / "run.json").read_text())["mlflow_run_id"]).data.tags
    assert (tags["alarm"], tags["headline"] == "no alarm") == (("yes", False) if SHIFTS[name][0] else ("no", True))


def test_no_false_alarms_over_many_batches(tmp_path: Path) -> None:
    """Families of 16 quantities raise an alarm in at most 5 % of the batches, for each with a reference of its own."""
    params, alarms, draws = Monitor(resamples=399, false_alarms=0.05, min_psi=0, min_ks=0, min_frechet=0), 0, 25
    for seed in range(draws):
        old, new = (cohort(size, number) for size, number in ((150, 2 * seed + 10), (20, 2 * seed + 11)))
        alarms += drift.alarm(drift.compare(record(old), new, params))[0]
    assert alarms <= binom.ppf(0.999, draws, params.false_alarms)


def cohort(images: int, seed: int) -> quantities.Cohort:
    predictions, appearance = columns(images, seed)
    return quantities.one_per_patient(pa.Table.from_pandas(pd.DataFrame(predictions)), pa.Table.from_pydict(appearance, SCHEMA))


def record(old: quantities.Cohort) -> Any:
    variables = {name: quantities.distribution(old, name) for name in old.values}
    return {"schema_version": 1, "task": "classify", "model": "", "images": old.images, "variables": variables,
            "waves": quantities.sample_of(old.waves, 0), "backbone": None, "features": []}  # fmt: skip


def test_a_reference_is_counts_without_ids(known: str, tmp_path: Path) -> None:
    content = json.loads(Path(known, "reference.json").read_text())
    assert check_reference(content, "") == content
    table = pd.read_parquet(tmp_path / "before" / "predictions.parquet")
    assert not [value for value in (*table["image_id"], *table["patient_id"]) if value in Path(known, "reference.json").read_text()]
    first = table.sort_values("image_id").drop_duplicates("patient_id")
    assert content["images"] == len(first) == 200
    view = content["variables"]["view"]
    assert dict(zip(view["values"], view["counts"][1:], strict=False)) == first["view"].value_counts().to_dict()
    assert content["variables"]["manufacturer"]["values"] == first["manufacturer"].value_counts()[lambda n: n >= 5].index.tolist()
    age = content["variables"]["age"]
    assert age["counts"] == [0, *np.histogram(first["age"], [-np.inf, *np.nextafter(age["edges"], np.inf), np.inf])[0]]
    assert min(age["counts"][1:]) >= 3


def test_the_distance_of_ages_is_near_that_of_all_values(known: str, tmp_path: Path) -> None:
    batch = write(tmp_path / "now", 90, 3, lambda predictions, _: predictions.update(age=predictions["age"] * np.float32(0.9)))
    run(reference=known, predictions=batch, out=str(tmp_path / "out"), params=PARAMS)
    old, new = (pd.read_parquet(tmp_path / name / "predictions.parquet").sort_values("image_id").drop_duplicates("patient_id")["age"]
                for name in ("before", "now"))  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["ks_age"] == pytest.approx(ks_2samp(old, new).statistic, abs=1 / 40)


def test_boxes_are_counted() -> None:
    boxes = pa.array([[{"score": 0.2}, {"score": 0.9}], [], [{"score": 0.5}]])
    found = scores_of(pa.table({"boxes": boxes}))
    assert found["boxes"].tolist() == [2, 0, 1] and found["highest_score"].tolist() == [0.9, 0, 0.5]


def test_what_cannot_be_compared(known: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "params.yaml").write_text("monitor: {resamples: 100}")

    def refused(command: str, **paths: str) -> str:
        words = [word for name, path in paths.items() for word in (f"--{name}", path)]
        assert main([*command.split(), *words, "--out", str(tmp_path / "out"), "--params", str(tmp_path / "params.yaml")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    batch = write(tmp_path / "now", 30, 1)
    assert "reference.json: not found" in refused("monitor", reference=batch, predictions=batch)
    (tmp_path / "now" / "model.json").write_text(json.dumps({"task": "classify", "sha256": "1" * 64}))
    assert "was scored by another model" in refused("monitor", reference=known, predictions=batch)
    assert "is not the address of a version" in refused("monitor", reference="models:/name", predictions=batch)
    assert "name a registered version" in refused("monitor", reference="models:/unknown@champion", predictions=batch)
    assert "too few for a reference" in refused("monitor reference", predictions=write(tmp_path / "few", 20, 1))
    (tmp_path / "now" / "appearance.parquet").unlink()
    assert "not found; run predict again" in refused("monitor reference", predictions=batch)
    damaged = json.loads(Path(known, "reference.json").read_text())
    damaged["variables"]["age"]["counts"].pop()
    Path(known, "reference.json").write_text(json.dumps(damaged))
    assert "age has another length than it should" in refused("monitor", reference=known, predictions=write(tmp_path / "later", 30, 1))


def test_measures_of_an_image() -> None:
    image = np.zeros((40, 20), np.uint8)
    image[:, 10:] = 255
    levels, waves = measure(image)
    assert levels == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5])
    assert len(waves) == WAVES * WAVES - 1 and max(range(len(waves)), key=lambda place: abs(waves[place])) == 0  # one wave across
    assert measure(image.astype(np.uint16) * 257)[1] == pytest.approx(waves, abs=1e-5)


def test_reference_of_a_head_takes_the_images_from_the_shards(make_shards: MakeShards, tmp_path: Path) -> None:
    shards = make_shards()
    rows = pd.concat(map(pd.read_parquet, sorted(Path(shards).glob("part-*.parquet")))).query("split != 'train'")
    folder = tmp_path / "classify"
    folder.mkdir()
    meta = ["image_id", "patient_id", "split", "view", "sex", "age", "manufacturer"]
    rows[meta].assign(task="classify", score_Left=0.5).to_parquet(folder / "predictions.parquet", index=False)
    (folder / "model.json").write_text(json.dumps({"task": "classify", "sha256": "0" * 64}))
    (folder / "run.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.monitor.run.FEWEST", 5)
        reference(predictions=str(folder), shards=[shards], out=str(tmp_path / "reference"), params=PARAMS)
        with pytest.raises(UserError, match=r"are of images that appearance\.parquet or the shards lack"):
            reference(predictions=str(folder), shards=[make_shards("fewer", images=20)], out=str(tmp_path / "other"), params=PARAMS)
    content = json.loads((tmp_path / "reference" / "reference.json").read_text())
    first = rows.sort_values("image_id").drop_duplicates("patient_id")
    assert content["images"] == len(first)
    bright = [decode(row).mean() / 255 for row in first.to_dict("records")]
    brightness = content["variables"]["brightness"]
    assert brightness["counts"] == [0, *np.histogram(bright, [-np.inf, *np.nextafter(brightness["edges"], np.inf), np.inf])[0]]


def test_features_of_a_backbone(make_shards: MakeShards, pretrained: str, tmp_path: Path) -> None:
    opened = open_shards(make_shards())
    features = Extractor(pretrained, 32, 8)
    table = pa.concat_tables(describe(*each, features) for each in opened.scan(HEADER, lambda _: True))
    images = [decode(row) for part in opened.parts() for row in pd.read_parquet(part.uri).to_dict("records")]
    directions = np.random.default_rng(0).normal(size=(512, FEATURES)) / np.sqrt(512)
    expected = features(images) @ directions
    np.testing.assert_allclose(np.array(table["features"].to_pylist()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("moved", [0, 3])
def test_features_are_compared(moved: float, tmp_path: Path) -> None:
    def with_features(shift: float, backbone: str) -> Callable[[Table, Table], None]:
        rng = np.random.default_rng(int(shift) + 7)
        return lambda _, appearance: appearance.update(
            features=(rng.normal(size=(len(appearance["image_id"]), FEATURES)) + shift).tolist(),
            backbone=[backbone] * len(appearance["image_id"]),
        )

    reference(predictions=write(tmp_path / "old", 90, 0, with_features(0, "a")), out=str(tmp_path / "reference"), params=PARAMS)
    new = write(tmp_path / "new", 60, 1, with_features(moved, "a"))
    known, out = str(tmp_path / "reference"), str(tmp_path / "out")
    assert run(reference=known, predictions=new, out=out, params=PARAMS) == (ALARM if moved else 0)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["p_features"] <= PARAMS.false_alarms) == bool(moved)
    other = write(tmp_path / "other", 60, 1, with_features(0, "b"))
    with pytest.raises(UserError, match="lacks the features that"):
        run(reference=known, predictions=other, out=out, params=PARAMS)


@pytest.mark.slow
def test_from_phantoms_to_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered model, a reference that is kept with it, and batches of the same and of another kind, by the command line."""
    params = {"simulate": {"patients": 40, "size": 64}, "runtime": {"workers": 1}, "evaluate": {"resamples": 100, "min_positives": 1},
              "register": {"name": "monitor-test", "min_auroc": 0}, "monitor": {"resamples": 1999}}  # fmt: skip
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    address = "models:/monitor-test@champion"
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", "k" * 32)

    def command(words: str, out: str, **paths: str) -> int:
        given = [word for name, path in paths.items() for word in (f"--{name}", path)]
        return main([*words.split(), *given, "--out", str(tmp_path / out), "--params", str(tmp_path / "params.yaml")])

    model = folders.write_model(tmp_path / "model", 1, folders.targets_of(1))
    evaluation = folders.write_evaluation(tmp_path / "evaluation", model)
    assert command("register", "registered", model=model, evaluation=evaluation) == 0
    assert command("simulate", "raw") == 0
    assert command("predict", "scored", model=address, raw=str(tmp_path / "raw")) == 0
    assert command("monitor", "out", reference=address, predictions=str(tmp_path / "scored")) == 2
    assert command("monitor reference", "reference", predictions=str(tmp_path / "scored"), model=address) == 0

    assert command("simulate --set simulate.seed=1 --set simulate.patients=20", "same") == 0
    (tmp_path / "inverted").mkdir()
    for number, path in enumerate(sorted((tmp_path / "same").rglob("*.dcm"))):
        image = recipe.read(path.read_bytes(), views=("PA", "AP"), body_parts=(), size=64, bits=8, percentile=99)
        assert not isinstance(image, str)
        cv2.imwrite(str(tmp_path / "inverted" / f"{number}.png"), 255 - image[0])
    for name, code in (("same", 0), ("inverted", ALARM)):
        assert command("predict", f"{name}-scored", model=address, raw=str(tmp_path / name)) == 0
        assert command("monitor", f"{name}-drift", reference=address, predictions=str(tmp_path / f"{name}-scored")) == code
    metrics = json.loads((tmp_path / "inverted-drift" / "metrics.json").read_text())
    assert metrics["p_structure"] <= 0.01
