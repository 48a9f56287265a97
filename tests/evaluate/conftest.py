"""Shared fixtures: output folders of classify with made-up scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FINDINGS = ["Effusion", "Nodule <small>", "Rare", "Absent"]
Table = dict[str, Any]
MakePredictions = Callable[..., str]


@pytest.fixture
def make_predictions(tmp_path: Path) -> MakePredictions:
    """Returns a function that writes an output folder of classify; `change` may edit the columns of predictions.parquet."""

    def make(name: str = "classify", change: Callable[[Table], object] | None = None, skill: float = 1.0, seed: int = 0) -> str:
        folder = tmp_path / name
        (folder / "figures").mkdir(parents=True)
        columns = _columns(skill, seed)
        if change:
            change(columns)
        pq.write_table(pa.table(columns), folder / "predictions.parquet")
        model = {"task": "classify", "arch": "resnet18", "findings": FINDINGS, "size": 64, "best_epoch": 2, "sha256": "f" * 64}
        _write_json(folder / "model.json", model)
        _write_json(
            folder / "run.json",
            {
                "stage": "classify",
                "git": {"commit": "c0ffee" * 6, "dirty": False},
                "params": {"arch": "resnet18", "lr": 0.0003, "label_fraction": 0.5},
                "inputs": {"shards": "a" * 64, "backbone": "b" * 64},
                "started": "2001-02-03T04:05:06Z",
                "mlflow_run_id": "run-of-classify",
            },
        )
        (folder / "history.csv").write_text("epoch,loss,val_auroc_macro,images_per_second\n1,0.7,0.6,51.25\n2,0.5,0.8,52.5\n3,0.4,,53.75\n")
        return str(folder)

    return make


def _columns(skill: float, seed: int) -> Table:
    """Returns one to three images per patient, every third patient in val; in test, `Rare` has three positives and `Absent` none."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    test = who % 3 != 0
    targets = (rng.random((len(who), 4)) < 0.35).astype(np.float32)
    targets[test, 2] = 0
    targets[np.flatnonzero(test)[[1, 20, 40]], 2] = 1
    targets[test, 3] = 0
    targets[::9, 0] = np.nan
    noise = np.random.default_rng(seed).normal(size=targets.shape)
    scores = np.round(1 / (1 + np.exp(-(skill * (np.nan_to_num(targets) - 0.5) * 2 + noise))), 2).astype(np.float32)  # rounded to give ties
    columns: Table = {
        "image_id": [f"{index:032x}" for index in range(len(who))],
        "patient_id": [f"{index + 10**6:032x}" for index in who],
        "split": ["test" if each else "val" for each in test],
        "task": ["classify"] * len(who),
        "view": ["PA"] * len(who),
        "sex": ["F"] * len(who),
        "age": [50.0] * len(who),
        "manufacturer": ["MAKER"] * len(who),
    }
    for index, finding in enumerate(FINDINGS):
        columns |= {f"score_{finding}": scores[:, index], f"target_{finding}": targets[:, index]}
    return columns


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
