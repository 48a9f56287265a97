"""The environment and the log of containers in local runs. tests/containers runs real ones."""

import pytest

from pipelines import containers
from pipelines.settings import Settings
from tests.pipelines.conftest import SETTINGS


@pytest.mark.parametrize("cut", range(12))
def test_lines_are_whole(cut: int) -> None:
    """The engine may split its stream within a character."""
    stream = "grün\n100 µm".encode()
    assert list(containers.lines([stream[:cut], stream[cut:]])) == ["grün", "100 µm"]


def test_containers_inherit_only_the_variables_that_steps_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/only/here.pem")
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = containers.environment(Settings.model_validate(SETTINGS | {"environment": {"OMP_NUM_THREADS": "4"}}), "/out")
    expected = {"AWS_ACCESS_KEY_ID": "id", "KFP_RUN_ID": "run-1", "OMP_NUM_THREADS": "4", "MLFLOW_TRACKING_URI": "sqlite:////out/mlflow.db"}
    assert given.items() >= expected.items()
    assert "AWS_CA_BUNDLE" not in given


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000", "https://mlflow.example.org"])
def test_containers_use_the_tracking_server(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert containers.environment(Settings.model_validate(SETTINGS), "/out")["MLFLOW_TRACKING_URI"] == address
