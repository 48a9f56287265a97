"""Predictions of the images only that the same model has not scored before."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.__main__ import main
from components.common.errors import UserError
from components.evaluate import run as evaluate
from components.params import Params
from components.predict import run as predict
from components.preprocess import rows
from components.preprocess import run as preprocess
from components.simulate import run as simulate
from tests.register import folders

CONTENT: dict[str, Any] = {
    "runtime": {"workers": 1},
    "simulate": {"patients": 12, "size": 80},
    "preprocess": {"size": folders.SIZE, "parts": 2},
    "evaluate": {"resamples": 100, "min_positives": 1},
}
PARAMS = Params.model_validate(CONTENT)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "raw"
    simulate.run(out=str(folder), **PARAMS.arguments("simulate"))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    return folders.write_model(tmp_path / "model", 1, folders.targets_of(1))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that are decoded."""
    paths: list[str] = []
    decode = rows._decode
    monkeypatch.setattr(rows, "_decode", lambda context, work: (paths.append(work.path), decode(context, work)))
    yield paths


def files_of(raw: Path) -> list[str]:
    return sorted(str(path.relative_to(raw)) for path in raw.rglob("*.dcm"))


def score(model: str, raw: Path, out: Path, *scored: Path) -> pd.DataFrame:
    predict.run(model=model, raw=str(raw), out=str(out), scored=[str(path) for path in scored], **PARAMS.arguments("predict"))
    return pd.read_parquet(out / "predictions.parquet")


def metrics_of(out: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return content


def test_only_new_images_are_decoded_and_scored(
    model: str, cohort: Path, tmp_path: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The raw folder grows from day to day; the predictions of all days together are those of one run over all files."""
    caplog.set_level(logging.INFO)
    whole = score(model, cohort, tmp_path / "whole").set_index("image_id")
    raw, days, files = tmp_path / "raw", tmp_path / "days", files_of(cohort)
    late = files[-5:]
    shutil.copytree(cohort, raw, ignore=shutil.ignore_patterns("*.csv"))
    for path in late:
        (raw / path).unlink()
    (raw / "notes.txt").write_text("no radiograph")

    first = score(model, raw, days / "1", days)
    for path in late:
        shutil.copy(cohort / path, raw / path)
    shutil.copy(cohort / files[0], raw / "copy of an old one.dcm")
    shutil.copy(cohort / "labels.csv", raw)  # names images of both days
    decoded.clear()
    second = score(model, raw, days / "2", days)
    assert sorted(decoded) == late
    assert len(second) == len(late) and not set(first["image_id"]) & set(second["image_id"])
    found = metrics_of(days / "2")
    assert (found["rows"], found["skipped"], found["quarantined"]) == (5, len(files) - 4, 1)
    assert found["rows"] + found["skipped"] + found["quarantined"] + found["duplicates"] == found["files"] == len(files) + 2
    assert len(pd.read_parquet(days / "2" / "appearance.parquet")) == len(late)
    both = pd.concat([first, second]).set_index("image_id")
    scores = ["score_Effusion", "score_Nodule"]
    pd.testing.assert_frame_equal(both[scores].sort_index(), whole[scores].sort_index(), rtol=1e-4)

    decoded.clear()
    third = score(model, raw, days / "3", days)
    assert len(third) == len(decoded) == 0
    assert third.columns.tolist() == ["image_id", "patient_id", "split", "task", "view", "sex", "age", "manufacturer"]
    assert "there is nothing new to score" in caplog.text
    assert "Nothing new to score" in (days / "3" / "report.html").read_text()
    assert metrics_of(days / "3")["skipped"] == len(files) + 1

    again = score(model, raw, days / "2", days)
    pd.testing.assert_frame_equal(again, second)  # the same command, run again, does not empty its own output

    other = folders.write_model(tmp_path / "other", 2, folders.targets_of(2))
    assert len(score(other, raw, tmp_path / "by another", days)) == len(files)


def test_rows_of_shards_are_left_out(model: str, cohort: Path, tmp_path: Path) -> None:
    preprocess.run(raw=str(cohort), out=str(tmp_path / "shards"), **PARAMS.arguments("preprocess"))
    some = tmp_path / "some"
    some.mkdir()
    for number, path in enumerate(files_of(cohort)[:4]):
        shutil.copy(cohort / path, some / f"{number}.dcm")
    before = score(model, some, tmp_path / "before")
    given = PARAMS.arguments("predict")
    predict.run(model=model, shards=[str(tmp_path / "shards")], out=str(tmp_path / "after"), scored=[str(tmp_path / "before")], **given)
    after = pd.read_parquet(tmp_path / "after" / "predictions.parquet")
    assert len(after) == len(files_of(cohort)) - 4 and not set(before["image_id"]) & set(after["image_id"])
    assert pd.read_parquet(tmp_path / "after" / "appearance.parquet")["image_id"].tolist() == after["image_id"].tolist()
    assert metrics_of(tmp_path / "after")["skipped"] == 4


def test_stages_after_an_empty_batch(
    model: str, cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    score(model, cohort, tmp_path / "all")
    score(model, cohort, tmp_path / "none", tmp_path / "all")
    (tmp_path / "params.yaml").write_text(json.dumps(CONTENT | {"monitor": {"resamples": 100}}))
    more = ["--params", str(tmp_path / "params.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.monitor.run.FEWEST", 5)
        assert main(["monitor reference", "--predictions", str(tmp_path / "all"), "--out", str(tmp_path / "reference"), *more]) == 0
    given = ["--reference", str(tmp_path / "reference"), "--predictions", str(tmp_path / "none"), "--out", str(tmp_path / "drift")]
    assert main(["monitor", *given, *more]) == 0
    assert "nothing is compared, since no image was scored" in caplog.text
    assert metrics_of(tmp_path / "drift")["alarm"] == 0
    capsys.readouterr()
    assert main(["monitor reference", "--predictions", str(tmp_path / "none"), "--out", str(tmp_path / "other"), *more]) == 2
    assert "has no rows; score images first" in capsys.readouterr().err
    with pytest.raises(UserError):
        evaluate.run(predictions=[str(tmp_path / "none")], out=str(tmp_path / "e"), **PARAMS.arguments("evaluate"))


def test_files_that_are_all_unusable_are_still_an_error(model: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("no radiograph")
    with pytest.raises(UserError, match="none of the 1 files is a usable radiograph"):
        score(model, tmp_path / "raw", tmp_path / "out")
