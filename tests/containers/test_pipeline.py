"""The training pipeline with each step in a container of its own, on CPUs."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.runs.sqlite_store import DATABASE
from tests.containers.conftest import Images, podman
from tests.pipelines.conftest import Workplace, isolate
from tests.pipelines.test_local import by_hand, compare, pipeline_status, registered, run

pytestmark = pytest.mark.containers

HEADS = ("classify", "detect", "invert")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_host: str) -> Workplace:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    return Workplace(tmp_path)


def settings(workplace: Workplace, images: Images) -> str:
    return workplace.settings({"images": {"cpu": images.cpu, "gpu": images.gpu}, "heads": list(HEADS)})


def use_its_database(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    address = f"sqlite:///{workplace.out / DATABASE}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address)


def test_training_in_containers_gives_the_same_result(workplace: Workplace, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are identical byte for byte, since image and environment have the same packages."""
    hand = by_hand(workplace, *HEADS)
    monkeypatch.setenv("PYTHONPATH", "")

    assert run(workplace, settings(workplace, images), "--runner", "docker") == 0

    compare(workplace, hand, *HEADS)
    assert registered(workplace) == {"cxr-classify", "cxr-detect", "cxr-invert"}
    client = use_its_database(workplace, monkeypatch)
    assert pipeline_status() == ("FINISHED", {"FINISHED"})
    ids = {target: json.loads(podman("image", "inspect", getattr(images, target)).stdout)[0]["Id"] for target in ("cpu", "gpu")}
    for stage, target in (("shards", "cpu"), ("evaluate", "cpu"), *((stage, "gpu") for stage in ("pretrain", *HEADS))):
        record = json.loads((workplace.output(stage) / "run.json").read_text())
        assert client.get_run(record["mlflow_run_id"]).data.tags["image.digest"] == f"sha256:{ids[target]}", stage
        assert (workplace.output(stage) / "run.json").stat().st_uid == 1000, stage
    assert not podman("ps", "--all", "--quiet").stdout, "containers are removed"


def test_a_step_that_fails_at_once_fails_the_run(
    workplace: Workplace, images: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kfp may count a step as done if its container is removed before the exit code is read."""
    workplace.raw = workplace.folder / "empty"
    workplace.raw.mkdir()

    assert run(workplace, settings(workplace, images), "--runner", "docker") == 1

    assert "holds no files; give the folder of the raw files with --raw" in capsys.readouterr().out
    use_its_database(workplace, monkeypatch)
    assert pipeline_status() == ("FAILED", set())
    assert not list(workplace.out.glob("preprocess/*"))


def test_a_missing_image(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    absent = {"cpu": "localhost/cxr-cpu:absent", "gpu": "localhost/cxr-gpu:absent"}
    assert run(workplace, workplace.settings({"images": absent}), "--runner", "docker") == 2
    assert capsys.readouterr().err == (
        "local: localhost/cxr-cpu:absent: the container engine has no such image; run `make images`, or name others in the settings\n"
    )
