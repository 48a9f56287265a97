import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.common.runs import sqlite_store, tracking


def is_locked(folder: Path) -> bool:
    """Whether another open file has the lock of a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


def test_one_process_at_a_time_connects_for_the_first_time(mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []

    class Client(tracking.MlflowClient):
        def search_experiments(self, *arguments: Any, **options: Any) -> Any:
            locked.append(is_locked(mlflow_database.parent))
            return super().search_experiments(*arguments, **options)

    monkeypatch.setattr(tracking, "MlflowClient", Client)
    tracking.client()
    assert locked == [True]
    assert not is_locked(mlflow_database.parent)


@pytest.mark.slow
def test_processes_that_begin_together_share_a_new_database(tmp_path: Path) -> None:
    """Without the lock, all but one of them fail while MLflow creates its tables."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new/mlflow.db"}
    command = [sys.executable, "-c", "from components.common.runs import tracking; tracking.client()"]
    started = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql://mlflow/runs", "sqlite://"])
def test_other_stores_are_left_alone(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sqlite_store.creating(uri):
        assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    assert sqlite_store.absolute(uri) == uri
    assert sqlite_store.artifacts(uri, "pretrain") is None
