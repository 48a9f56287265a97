"""Shared fixtures. Shards are written without preprocess, so that each stage is tested on its own."""

import builtins
import gc
import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sqlalchemy import Engine, event

from components.common.formats.shards import SCHEMA, SCHEMA_VERSION, encode
from components.common.runs import signals, storage
from components.common.training import backbones
from components.params import Params
from components.register import imports

if TYPE_CHECKING:
    from tests.heads import Heads

FINDINGS = ["Left", "Right"]
MakeShards = Callable[..., str]


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: object, _: object) -> None:
    """Spares each commit to MLflow's database a flush of the disk."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leaves the objects of imported modules out of garbage collections, and has fewer: they take a tenth of the time otherwise."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    return found


def pytest_sessionfinish() -> None:
    """Lets extension modules take down what they own; they complain otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[None]:
    """Keeps tests from writing into the repository's MLflow database, the user's cache of shards, and the folder of temporary files."""
    temporary = str(tmp_path_factory.mktemp("temporary"))  # some libraries leave files there, which pytest deletes with the rest
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_database}")
        patch.setenv("CXR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("TMPDIR", temporary)
        patch.setattr(tempfile, "tempdir", temporary)
        yield


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Restores the environment variables, some of which a step of a pipeline sets for its process, and `print`, which kfp replaces."""
    before, printing = dict(os.environ), builtins.print
    yield
    os.environ.clear()
    os.environ.update(before)
    builtins.print = printing


@pytest.fixture(autouse=True)
def _no_request_to_stop() -> Iterator[None]:
    """Clears a requested stop, so that it does not affect later tests."""
    yield
    signals._stop.clear()


@pytest.fixture
def decoded_images(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each image of shards that is decoded."""
    found: list[None] = []
    unpack = imagecodecs.bitshuffle_decode
    monkeypatch.setattr(imagecodecs, "bitshuffle_decode", lambda *args: (found.append(None), unpack(*args))[1])
    return found


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read as a whole, by path."""
    found: Counter[str] = Counter()
    original = storage.read
    monkeypatch.setattr(storage, "read", lambda uri: (found.update([uri]), original(uri))[1])
    return found


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Parses each module once, not twice for every model that is packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "imported", cache(imports.imported))
        yield


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database shared by all tests, since creating its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them, to be copied, since creating the tables takes seconds."""
    from components.common.runs import tracking  # imports MLflow, which many tests do not need

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        tracking.client()
    return path


@pytest.fixture
def own_mlflow(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A database that only this test writes to, in a folder with nothing else; the models that the test registers are deleted with it."""
    folder = tmp_path_factory.mktemp("mlflow")
    path = shutil.copy(empty_mlflow, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    yield Path(path)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> "Heads":
    """A detector and an inversion with their evaluation, trained once per session since it takes seconds."""
    from tests.heads import make  # imports all stages, which few tests need

    return make(tmp_path_factory.mktemp("heads"))


def replace_part(path: Path, table: pa.Table) -> None:
    """Writes another table into a part of shards, and its digest into their manifest."""
    pq.write_table(table, path, row_group_size=7)
    manifest = json.loads(path.with_name("manifest.json").read_text())
    for part in manifest["parts"]:
        if part["name"] == path.name:
            part["sha256"] = storage.digest_file(path)
    path.with_name("manifest.json").write_text(json.dumps(manifest))


def write_shards(folder: Path, images: int = 60, parts: int = 2, group: int = 7, seed: int = 0, bits: int = 8, without: str = "") -> str:
    """Writes shards of 32 x 24 px (H x W) images whose findings `Left` and `Right` are bright spots; returns the folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = [_row(rng, index, bits) for index in range(images)]
    rows = [row for row in rows if row["split"] != without]
    described = []
    for part in range(parts):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[part::parts], schema=SCHEMA), path, row_group_size=group)
        described.append({"name": path.name, "rows": len(rows[part::parts]), "sha256": storage.digest_file(path)})
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "findings": FINDINGS,
        "size": 32,
        "bits": bits,
        "train_pixels": {"count": 1000, "mean": 0.4, "std": 0.2},
        "parts": described,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.json").write_text(json.dumps({"stage": "preprocess", "mlflow_run_id": "upstream-run"}))
    return str(folder)


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Returns a function that writes shards into a folder of the test: see `write_shards`."""
    return lambda name="shards", **given: write_shards(tmp_path / name, **given)


def _row(rng: np.random.Generator, index: int, bits: int) -> dict[str, object]:
    labels = rng.integers(0, 2, 2).astype(float)
    full = 2**bits - 1
    image = rng.uniform(0.2, 0.5, (32, 24))
    image[8:20, 2:9] += 0.4 * labels[0]
    image[8:20, 14:21] += 0.4 * labels[1]
    patient = index // 2
    return {
        **encode(np.round(image * full).astype(f"uint{bits}")),
        "image_id": f"image{index:04d}",
        "patient_id": f"patient{patient:04d}",
        "split": "test" if patient % 5 == 0 else "val" if patient % 5 == 1 else "train",
        "labels": [float("nan") if index % 11 == 3 else labels[0], labels[1]],
        "boxes": [],
        "view": "PA",
        "sex": "F",
        "age": 50.0,
        "manufacturer": "MAKER",
    }


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """An output folder of pretrain with random weights."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    torch.manual_seed(5)
    backbones.export(backbones.build("resnet18"), folder, {"arch": "resnet18", "normalisation": {"mean": 0.25, "std": 0.5}})
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": "pretrain-run"}))
    return str(folder)


@pytest.fixture(scope="session")
def tiny() -> Params:
    """Parameters for a few seconds of training on the shards of `make_shards`."""
    return Params.model_validate(
        {
            "pretrain": {
                "arch": "resnet18",
                "epochs": 2,
                "batch_size": 8,
                "queue_size": 16,
                "shuffle_groups": 2,
                "dim": 16,
            },
            "classify": {"arch": "resnet18", "epochs": 2, "batch_size": 8, "lr": 0.001},
            "runtime": {"checkpoint_minutes": 0},
        }
    )
