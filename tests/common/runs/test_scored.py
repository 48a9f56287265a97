"""The record of scored images, read from output folders that are written here."""

import json
from pathlib import Path

import pandas as pd
import pytest

from components.common.errors import UserError
from components.common.runs.scored import digest, read_list, record, scored_images, write_list

MODEL = "a" * 64


def write(folder: Path, images: list[str], stage: str = "predict", model: str = MODEL) -> None:
    folder.mkdir(parents=True)
    rows = {"image_id": images, "patient_id": images, "split": ["test"] * len(images), "task": ["classify"] * len(images)}
    pd.DataFrame(rows).astype(str).to_parquet(folder / "predictions.parquet", index=False)
    (folder / "run.json").write_text(json.dumps({"stage": stage, "inputs": {"model": model}}))


def test_what_counts_is_finished_and_of_the_same_model(tmp_path: Path) -> None:
    write(tmp_path / "days" / "1", ["a", "b"])
    write(tmp_path / "days" / "2" / "predictions", ["b", "c"])  # as validate leaves them
    write(tmp_path / "days" / "3.partial" / "0123", ["unfinished"])
    write(tmp_path / "days" / "4" / ".partial" / "0123", ["unfinished"])
    write(tmp_path / "days" / "5", ["other model"], model="b" * 64)
    write(tmp_path / "days" / "6", ["other stage"], stage="classify")
    write(tmp_path / "days" / "7", [])
    write(tmp_path / "days" / "8", ["no run record"])
    (tmp_path / "days" / "8" / "run.json").unlink()
    write(tmp_path / "single", ["d"])
    found = scored_images(map(str, (tmp_path / "days", tmp_path / "single", tmp_path / "nowhere")), MODEL)
    assert found == {"a", "b", "c", "d"}
    assert digest(found) == digest(["d", "c", "b", "a"]) != digest("abc")


def test_an_output_that_is_replaced_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "days" / "1", ["a"])
    write(tmp_path / "days" / "2", ["b"])
    monkeypatch.chdir(tmp_path)
    for out in (str(tmp_path / "days" / "2"), "days/2", "days/../days/2/"):
        assert scored_images([str(tmp_path / "days")], MODEL, apart_from=out) == {"a"}
        assert scored_images(["days"], MODEL, apart_from=out) == {"a"}


def test_a_list_is_named_by_its_content(tmp_path: Path) -> None:
    path = write_list({"b", "a"}, str(tmp_path))
    assert read_list(path) == {"a", "b"} and digest("ab") in path
    assert write_list(["a", "b"], str(tmp_path)) == path
    assert read_list(write_list([], str(tmp_path))) == frozenset()
    assert scored_images([str(tmp_path)], MODEL) == frozenset()
    Path(path).write_text("a")
    with pytest.raises(UserError, match="has changed"):
        read_list(path)


def test_the_folder_of_a_version(tmp_path: Path) -> None:
    assert record("s3://bucket/root/", "cxr-classify", "3") == "s3://bucket/root/scored/cxr-classify/3"
    assert record(str(tmp_path), "cxr-classify", "3") == str(tmp_path / "scored" / "cxr-classify" / "3")


def test_a_damaged_output_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", ["a"])
    (tmp_path / "a" / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a/predictions\.parquet: not a Parquet file, or a damaged one"):
        scored_images([str(tmp_path)], MODEL)
