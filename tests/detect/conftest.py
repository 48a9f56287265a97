"""Shared fixtures: shards with boxes around the bright spots of tests/conftest.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.formats.shards import SCHEMA
from components.params import Params
from tests.conftest import FINDINGS, MakeShards, replace_part

SPOTS = {"Left": (2.0, 8.0, 7.0, 12.0), "Right": (14.0, 8.0, 7.0, 12.0)}
Change = Callable[[dict[str, Any]], object]


def box(label: str, x: float, y: float, width: float, height: float) -> dict[str, object]:
    return {"label": label, "x": x, "y": y, "width": width, "height": height}


@pytest.fixture
def make_boxed(make_shards: MakeShards) -> Callable[..., str]:
    """Returns a function that writes shards with a box for each positive label; `change` may edit each row."""

    def make(name: str = "boxed", change: Change | None = None, **options: Any) -> str:
        folder = make_shards(name, **options)
        for path in Path(folder).glob("part-*.parquet"):
            rows = pq.read_table(path).to_pylist()
            for row in rows:
                row["boxes"] = [box(each, *SPOTS[each]) for each, label in zip(FINDINGS, row["labels"], strict=True) if label == 1]
                row["labels"] = np.array(row["labels"], np.float32).tolist()
                if change:
                    change(row)
            replace_part(path, pa.Table.from_pylist(rows, schema=SCHEMA))
        return folder

    return make


@pytest.fixture
def small() -> Params:
    """Parameters for a few seconds of training on the shards of `make_boxed`."""
    section = {"arch": "resnet18", "channels": 64, "epochs": 2, "batch_size": 8, "lr": 0.002}
    return Params.model_validate({"detect": section})
