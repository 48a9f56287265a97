"""croissant.json, validated and loaded by MLCommons' own library, and compared with the Parquet files as pyarrow reads them."""

import json
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.formats.croissant import COLUMNS, RECORDS
from components.common.formats.shards import SCHEMA
from components.params import Params
from components.preprocess import run as preprocess
from components.simulate import run as simulate


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("croissant")
    content: dict[str, Any] = {
        "runtime": {"workers": 1},
        "simulate": {"patients": 12, "size": 64},
        "preprocess": {"size": 48, "parts": 3},
    }
    params = Params.model_validate(content)
    simulate.run(out=str(folder / "raw"), **params.arguments("simulate"))
    preprocess.run(raw=str(folder / "raw"), out=str(folder / "shards"), **params.arguments("preprocess"))
    return folder / "shards"


def test_it_is_valid_and_gives_every_value_of_every_row(shards: Path) -> None:
    dataset = mlcroissant.Dataset(jsonld=shards / "croissant.json")
    issues = dataset.metadata.issues
    assert not issues.errors
    missing = sorted(line.split('"')[1].rsplit("/", 1)[-1] for line in issues.warnings)
    assert missing == ["citeAs", "datePublished", "license"], "what only the publisher knows"

    rows = {row["image_id"]: row for path in shards.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()}
    records = {record[f"{RECORDS}/image_id"].decode(): record for record in dataset.records(RECORDS)}
    assert records.keys() == rows.keys() and len(rows) > 12
    assert sum(len(row["boxes"]) for row in rows.values()) > 0
    for image, row in rows.items():
        record = {name.removeprefix(f"{RECORDS}/"): value for name, value in records[image].items()}
        assert list(record) == SCHEMA.names == list(COLUMNS)
        for field in SCHEMA:
            assert_same(record[field.name], row[field.name], field.type)


def assert_same(record: Any, value: Any, kind: pa.DataType) -> None:
    if value is None:
        assert record is None
    elif pa.types.is_list(kind):
        assert len(record) == len(value)
        for mine, other in zip(record, value, strict=True):
            assert_same(mine, other, kind.value_type)
    elif pa.types.is_struct(kind):
        assert {name.rsplit("/", 1)[1] for name in record} == set(value)
        for name, item in record.items():
            part = name.rsplit("/", 1)[1]
            assert_same(item, value[part], kind.field(part).type)
    elif pa.types.is_floating(kind):
        np.testing.assert_equal(float(record), value)
    else:
        assert record == (value.encode() if isinstance(value, str) else value)


def test_it_names_the_files_by_their_digests_and_nothing_that_the_manifest_does_not(shards: Path) -> None:
    content, manifest = (json.loads((shards / name).read_text()) for name in ("croissant.json", "manifest.json"))
    files = {each["contentUrl"]: each["sha256"] for each in content["distribution"] if each["@type"] == "cr:FileObject"}
    assert files == {part["name"]: part["sha256"] for part in manifest["parts"]}
    assert (
        f"{manifest['counts']['images']['test']} images of {manifest['counts']['patients']['test']} patients (test)"
        in content["description"]
    )
    assert str(shards.parent) not in json.dumps(content)
