from pathlib import Path

import pyarrow.parquet as pq

from components.common.formats import quarantine


def test_rows_are_written_in_groups(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.dcm", "reason": "not_dicom", "detail": ""} for number in range(10_001)]
    quarantine.write_quarantine(tmp_path / "q", iter(rows))
    assert pq.read_table(tmp_path / "q").to_pylist() == rows
    assert pq.ParquetFile(tmp_path / "q").num_row_groups == 2


def test_no_rows_give_an_empty_table(tmp_path: Path) -> None:
    quarantine.write_quarantine(tmp_path / "q", [])
    assert pq.read_table(tmp_path / "q").schema == quarantine.SCHEMA
