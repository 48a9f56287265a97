from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.formats.history import VOLATILE, metrics_of, parse_history, write_history


def test_history_survives_a_round_trip(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": 0.5, "auroc": float("nan")}, {"epoch": 2, "loss": 1 / 3, "auroc": 0.75}]
    write_history(tmp_path / "h", rows)
    parsed = parse_history((tmp_path / "h").read_bytes(), "h")
    np.testing.assert_equal(parsed, rows)


def test_no_epochs_leave_a_header(tmp_path: Path) -> None:
    write_history(tmp_path / "h", [])
    assert (tmp_path / "h").read_bytes() == b"epoch\n"
    assert parse_history(b"epoch\n", "h") == []


def test_a_blank_cell_is_undefined() -> None:
    np.testing.assert_equal(parse_history(b"epoch,loss\n1,\n", "h"), [{"epoch": 1.0, "loss": float("nan")}])


def test_text_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="h: line 3 is not numbers"):
        parse_history(b"epoch,loss\n1,0.5\n2,low\n", "h")


def test_metrics_are_without_epoch_and_speed() -> None:
    measured = dict.fromkeys(VOLATILE, 9.0)
    assert metrics_of({"epoch": 3, "loss": 0.5, **measured}) == {"loss": 0.5}
