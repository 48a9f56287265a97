from pathlib import Path

import pytest

from tests.heads import Heads, make


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Heads:
    return make(tmp_path_factory, mlflow_database)
