import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.common.errors import UserError
from components.common.formats import predictions


def rows(split: str, **columns: list[float]) -> pa.Table:
    return pa.table({"image_id": ["a"], "patient_id": ["p"], "split": [split], "task": ["classify"], **columns})


def test_predictions_survive_a_round_trip(tmp_path: Path) -> None:
    tables = [rows("val", score_Mass=[0.5], target_Mass=[1.0]), rows("test", score_Mass=[0.25], target_Mass=[float("nan")])]
    predictions.write_predictions(tmp_path, tables)
    table = predictions.parse_predictions((tmp_path / predictions.PREDICTIONS).read_bytes(), "p")
    np.testing.assert_equal(table.to_pydict(), pa.concat_tables(tables).to_pydict())
    assert predictions.findings_of(table) == ["Mass"]
    test = predictions.rows_of(table, "test")
    np.testing.assert_equal(predictions.matrix(test, ["score_Mass", "target_Mass"]), [[0.25, np.nan]])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="p: not a Parquet file"):
        predictions.parse_predictions(b"text", "p")
    predictions.write_predictions(tmp_path, [rows("val").drop_columns(["split", "task"])])
    with pytest.raises(UserError, match="p: lacks the columns split, task; run"):
        predictions.parse_predictions((tmp_path / predictions.PREDICTIONS).read_bytes(), "p")


def test_no_thread_of_arrow_lets_go_of_the_content(tmp_path: Path) -> None:
    """If one does while the interpreter ends, the process is aborted after its work."""
    columns = {f"score_{number}": [0.5] for number in range(30)}
    predictions.write_predictions(tmp_path, [rows("val", **columns)] * 100)
    content = (tmp_path / predictions.PREDICTIONS).read_bytes()
    threads = Counter[str]()

    class Content(bytes):
        def __del__(self) -> None:
            threads[threading.current_thread().name] += 1

    for _ in range(200):
        predictions.parse_predictions(Content(content), "p")
    assert threads == {threading.main_thread().name: 200}
