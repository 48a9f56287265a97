"""Every format that a stage reads, damaged in every way: one sentence that names the file or image, never another error."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.errors import UserError
from components.common.formats.history import parse_history
from components.common.formats.predictions import parse_predictions
from components.common.formats.shards import SCHEMA
from components.common.runs import storage
from components.common.runs.inputs import read_document, read_model, read_record
from components.common.runs.shards import open_shards
from components.common.training import backbones
from components.common.training.reader import Reader
from components.preprocess.partitions import open_all
from tests.common.formats import damage
from tests.conftest import MakeShards

IMAGES = 61  # a number that is nowhere else in the footer of a part


@pytest.fixture
def shards(make_shards: MakeShards) -> Path:
    return Path(make_shards(images=IMAGES, parts=1, group=IMAGES))


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        read()
    message = str(refused.value)
    assert "\n" not in message
    assert re.search(r"; (run|restore|use) ", message)
    return message


def read_all(folder: Path) -> None:
    """Reads a folder of shards as training does."""
    opened = open_shards(str(folder))
    assert opened.mean_std
    assert opened.upstream
    reader = Reader(opened, "train", ("view", "age", "boxes"))
    reader.labels()
    assert sum(len(batch.images) for batch in reader.in_order(8)) == len(reader)


def seal(folder: Path) -> None:
    """Puts the digests of changed parts into the manifest, so that only their content is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in manifest["parts"]:
        part["sha256"] = storage.digest_file(folder / part["name"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def documents(folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "manifest.json": lambda: open_shards(str(folder)),
        "run.json": lambda: read_record(str(folder)),
        "backbone.json": lambda: backbones.load(str(folder), "resnet18"),
        "model.json": lambda: read_model(str(folder), "classify"),
        "metrics.json": lambda: read_document(str(folder), "metrics.json", "evaluate"),
        "partition.json": lambda: open_all([str(folder)]),
    }


@pytest.mark.parametrize("kind", damage.TEXT)
@pytest.mark.parametrize("name", documents(Path()))
def test_damaged_documents(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / name).write_bytes(damage.TEXT[kind](b'{"schema_version": 1, "text": "a longer text"}'))
    assert refusal(documents(tmp_path)[name]).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("value", ["1e999", "NaN", "-1", "2", "null", '"0.2"', "true", "[0.2]"])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_absurd_statistics_in_a_manifest(key: str, value: str, shards: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(re.sub(rf'"{key}": [0-9.]+', f'"{key}": {value}', manifest.read_text()))
    assert refusal(lambda: open_shards(str(shards))).startswith(f"{manifest}: train_pixels.{key} is ")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("findings", 5, "findings is not a list"),
        ("findings", ["Left", 5], "findings.1 is not text"),
        ("findings", ["Left", "Left"], "findings has a name twice"),
        ("bits", 12, "bits is 12, not 8 or 16"),
        ("bits", 8.0, "bits is not a whole number"),
        ("size", 2**31, "size is 2147483648"),
        ("size", 0, "size is 0"),
        ("train_pixels", [], "train_pixels is not an object"),
        ("parts", {}, "parts is not a list"),
        ("parts", [], "parts is empty"),
        ("parts", ["part-00000.parquet"], "parts.0 is not an object"),
        ("parts", [{"name": "part-00000.parquet", "rows": 1}], "parts.0.sha256 is not text"),
        ("parts", [{"name": "../part-00000.parquet", "rows": 1, "sha256": ""}], "parts lie in other folders"),
        ("parts", [{"name": "part-00000.parquet", "rows": "1", "sha256": ""}], "parts.0.rows is not a whole number"),
    ],
)
def test_wrong_entries_of_a_manifest(key: str, value: Any, named: str, shards: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), key: value}))
    assert refusal(lambda: open_shards(str(shards))).startswith(f"{manifest}: {named}")


@pytest.mark.parametrize("key", ["findings", "bits", "size", "train_pixels", "parts"])
def test_missing_entries_of_a_manifest(key: str, shards: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(json.dumps({name: value for name, value in json.loads(manifest.read_text()).items() if name != key}))
    assert refusal(lambda: open_shards(str(shards))) == f"{manifest}: lacks {key}; run preprocess again"


def test_a_standard_deviation_of_zero_is_named(shards: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"std": 0.2', '"std": 0.0'))
    assert refusal(lambda: open_shards(str(shards)).mean_std).startswith(f"{manifest}: train_pixels.std is 0")


@pytest.mark.parametrize("kind", damage.BINARY)
def test_damaged_parts(kind: str, shards: Path) -> None:
    part = shards / "part-00000.parquet"
    part.write_bytes(damage.BINARY[kind](part.read_bytes()))
    assert refusal(lambda: read_all(shards)).startswith(f"{part}: does not match the digest in manifest.json; ")
    seal(shards)
    assert refusal(lambda: read_all(shards)).startswith(f"{part}: ")


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("claimed", [IMAGES - 1, 2**31, 2**40])
def test_parts_that_claim_other_numbers_of_rows(claimed: int, everywhere: bool, shards: Path) -> None:
    part, manifest = shards / "part-00000.parquet", shards / "manifest.json"
    part.write_bytes(damage.claim_rows(part.read_bytes(), IMAGES, claimed, everywhere))
    seal(shards)
    assert refusal(lambda: read_all(shards)).startswith(f"{part}: ")
    if claimed > IMAGES:
        manifest.write_text(manifest.read_text().replace(f'"rows": {IMAGES}', f'"rows": {claimed}'))
        assert refusal(lambda: read_all(shards)).startswith(f"{part}: ")


def changed(shards: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    part = shards / "part-00000.parquet"
    pq.write_table(change(pq.read_table(part)), part)
    seal(shards)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_parts_without_a_column_or_with_another_type(name: str, shards: Path) -> None:
    original = (shards / "part-00000.parquet").read_bytes()
    changed(shards, lambda table: table.drop_columns([name]))
    assert f"part-00000.parquet: lacks the column {name}; " in refusal(lambda: read_all(shards))
    (shards / "part-00000.parquet").write_bytes(original)
    changed(shards, lambda table: table.set_column(table.column_names.index(name), name, pa.array([True] * len(table))))
    assert f"part-00000.parquet: the column {name} is of type bool, not " in refusal(lambda: read_all(shards))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("height", 1_000_000), ("width", 2**31 - 1), ("height", 0), ("width", -1), ("height", 31), ("bits", 12), ("bits", 16),
        ("codec", "jpeg"), ("codec", None), ("pixels", b""), ("pixels", b"\x28\xb5\x2f\xfd garbage"), ("pixels", None), ("height", None),
        ("split", None), ("patient_id", None), ("labels", []), ("labels", [1.0]), ("labels", [1.0] * 3), ("labels", None),
    ],
)  # fmt: skip
def test_parts_with_absurd_cells(name: str, value: Any, shards: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        field = SCHEMA.field(name).with_nullable(True)
        return table.set_column(table.column_names.index(name), field, pa.array([value] * len(table), field.type))

    changed(shards, change)
    assert refusal(lambda: read_all(shards))


PREDICTIONS = pa.table({name: ["x"] * IMAGES for name in ("image_id", "patient_id", "split", "task")})


def predictions(table: pa.Table = PREDICTIONS) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("kind", [kind for kind in damage.BINARY if kind != "beginning of zeros"])
def test_damaged_predictions(kind: str) -> None:
    assert refusal(lambda: parse_predictions(damage.BINARY[kind](predictions()), "p.parquet")).startswith("p.parquet: ")


@pytest.mark.parametrize(
    "content",
    [
        damage.claim_rows(predictions(), IMAGES, 2**31, False),
        damage.claim_rows(predictions(), IMAGES, 2**31, True),
        predictions(PREDICTIONS.set_column(0, "image_id", pa.array([None] * IMAGES, pa.string()))),
        predictions(PREDICTIONS.set_column(0, "image_id", pa.array([1] * IMAGES))),
        predictions(PREDICTIONS.drop_columns(["task"])),
    ],
)
def test_absurd_predictions(content: bytes) -> None:
    assert refusal(lambda: parse_predictions(content, "p.parquet")).startswith("p.parquet: ")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_as_other_programs_store_it_is_accepted(kind: pa.DataType) -> None:
    table = PREDICTIONS.set_column(3, "task", PREDICTIONS["task"].cast(kind))
    assert parse_predictions(predictions(table), "p.parquet")["task"].to_pylist() == ["x"] * IMAGES


@pytest.mark.parametrize("content", [b"epoch,loss\n1,x\n", b"epoch,loss\n1," + b"1" * 200_000, b"epoch\n\x00\n", b"\xff\xfe,x\n1,\xff\n"])
def test_damaged_histories(content: bytes) -> None:
    assert refusal(lambda: parse_history(content, "history.csv")).startswith("history.csv: ")
