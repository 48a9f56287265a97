"""The pipeline `scoring`: its components one after the other in this process, and the whole on this machine."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from components.common.runs import tracking
from components.common.runs.scored import read_list
from components.monitor import component as monitoring
from components.monitor.run import reference
from components.params import Params
from components.predict import component as prediction
from components.predict.run import run as predict
from components.preprocess import component as preprocessing
from components.register.run import run as register
from pipelines import kfp_components, parameters
from pipelines.__main__ import main
from tests.pipelines.conftest import PARAMS, RAW, Workplace, isolate, run_schedule
from tests.pipelines.double import Double
from tests.register import folders

NAME = "scoring-test"
CHAMPION = f"models:/{NAME}@champion"
CONTENT = PARAMS | {"register": {"name": NAME, "min_auroc": 0.0, "resamples": 100}, "monitor": {"resamples": 1999}}
KEY = "k" * 64


@pytest.fixture(scope="module")
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A classifier of random weights as champion, and its copy as second version, since packing takes seconds."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        folders.skip_onnx(patch)
        model = folders.write_model(folder / "model", 1, folders.targets_of(1))
        given = {"model": model, "evaluation": folders.write_evaluation(folder / "evaluation", model)}
        register(**given, out=str(folder / "registration"), **Params.model_validate(CONTENT).arguments("register"))
        client = MlflowClient(tracking.uri())
        run = client.create_run(tracking.experiment(client, "register"))
        client.create_model_version(NAME, client.get_model_version(NAME, "1").source, run.info.run_id)


class Steps:
    """The steps of the pipeline, without Kubeflow."""

    def __init__(self, folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
        self.raw, self.root, self._patch, self._runs = raw, folder / "root", monkeypatch, 0
        self.params = Params.model_validate(CONTENT)
        self.shown: dict[str, dict[str, Any]] = {}
        self._ui = folder

    def begin(self, model: str = CHAMPION, partitions: int = 2) -> Any:
        """Begins a run; returns the partitions, the model and its reference."""
        self._runs += 1
        self._patch.setenv("KFP_RUN_ID", f"{self._ui.name}-{self._runs}")
        self._patch.delenv("MLFLOW_RUN_ID", raising=False)
        given = {"raw": str(self.raw), "model": model, "root": str(self.root), "partitions": partitions, "data_version": ""}
        return kfp_components.begin_scoring.python_func(**given)

    def run(self, begun: Any = None, end: bool = True) -> Path:
        """Takes all steps after `begin`; returns the folder of the predictions."""
        slices, model, known = begun or self.begin()
        shared, given = {"root": str(self.root), "runtime": self._section("runtime")}, self._section("preprocess")
        parts = [preprocessing.preprocess.python_func(partition=one, params=given, **shared) for one in slices]
        outputs = {"manifest": self._artifact("manifest"), **self._outputs("merge")}
        shards = preprocessing.merge.python_func(partitions=parts, params=given, **shared, **outputs)
        scored = {"shards": shards, "model": model, "params": given, "runtime": shared["runtime"]}
        predictions = prediction.predict.python_func(**scored, **self._outputs("predict"))
        compared = {"predictions": predictions, "model": model, "reference": known, "root": str(self.root)}
        monitoring.monitor.python_func(**compared, params=self._section("monitor"), **self._outputs("monitor"))
        if end:
            kfp_components.end.python_func(status=SimpleNamespace(state="SUCCEEDED"))
        return Path(predictions)

    def page(self, step: str) -> str:
        return (self._ui / f"{step}.report").read_text()

    def _outputs(self, step: str) -> dict[str, Any]:
        found = {"metrics": self._artifact(f"{step}.metrics"), "report": self._artifact(f"{step}.report")}
        self.shown[step] = found["metrics"].metadata
        return found

    def _artifact(self, name: str) -> Any:
        return SimpleNamespace(path=str(self._ui / name), metadata={})

    def _section(self, name: str) -> str:
        return json.dumps(self.params.section(name).values())


@pytest.fixture
def steps(_registered: None, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The pipeline over a folder that holds all phantoms but the last five."""
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", KEY)
    shutil.copytree(cohort, tmp_path / "raw", ignore=shutil.ignore_patterns("*.csv"))
    for path in last(cohort):
        (tmp_path / "raw" / path.relative_to(cohort)).unlink()
    return Steps(tmp_path, tmp_path / "raw", monkeypatch)


def last(cohort: Path) -> list[Path]:
    return sorted(cohort.rglob("*.dcm"))[-5:]


def images_of(folder: Path) -> list[str]:
    images: list[str] = pd.read_parquet(folder / "predictions.parquet")["image_id"].tolist()
    return images


def stage_runs(stage: str) -> list[Any]:
    """Returns the MLflow runs of a stage, the last first."""
    client = MlflowClient(tracking.uri())
    found = client.get_experiment_by_name(stage)
    assert found
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"]))


def test_a_second_run_scores_only_what_is_new(steps: Steps, cohort: Path, tmp_path: Path) -> None:
    first = steps.run()
    by_hand = tmp_path / "hand"
    predict(model=f"models:/{NAME}/1", raw=str(steps.raw), out=str(by_hand), **steps.params.arguments("predict"))
    table, expected = (pd.read_parquet(folder / "predictions.parquet").set_index("image_id").sort_index() for folder in (first, by_hand))
    pd.testing.assert_frame_equal(table, expected)
    assert first.parent == steps.root / "scored" / NAME / "1" / "predict"

    tags = stage_runs("predict")[1].data.tags  # the one by hand is later
    client = MlflowClient(tracking.uri())
    assert tags["model"] == f"models:/{NAME}/1"
    assert tags["upstream.model.run_id"] == client.get_model_version(NAME, "1").run_id
    parent = client.get_run(tags["mlflow.parentRunId"]).data.tags
    assert (parent["stage"], parent["model"]) == ("pipeline", tags["model"])
    assert client.get_run(tags["upstream.shards.run_id"]).data.tags["stage"] == "preprocess"
    assert "has no reference" in steps.page("monitor")

    for path in last(cohort):
        shutil.copy(path, steps.raw / path.relative_to(cohort))
    second = steps.run()
    assert len(images_of(second)) == 5 and not set(images_of(first)) & set(images_of(second))
    assert steps.shown["predict"]["rows"] == 5 and steps.shown["predict"]["skipped"] == len(table)
    assert "5 images scored" in steps.page("predict")

    begun = steps.begin()
    assert images_of(steps.run(begun)) == [] and steps.shown["predict"]["skipped"] == len(table) + 5
    assert steps.begin() == begun, "the next run takes the same steps from the cache"
    left_out = [read_list(json.loads(steps.begin(f"models:/{NAME}/{number}")[0][0])["skip"]) for number in (1, 2)]
    assert left_out == [{*images_of(first), *images_of(second)}, frozenset()], "another version has scored nothing"


def test_the_alias_is_looked_up_once(steps: Steps) -> None:
    client, found = MlflowClient(tracking.uri()), []
    for number in ("1", "2", "1"):
        client.set_registered_model_alias(NAME, "champion", number)
        found.append(json.loads(steps.begin()[1])["uri"])
    assert found == [f"models:/{NAME}/{number}" for number in (1, 2, 1)], "the other steps get the version from the first"


def test_two_runs_at_the_same_time(steps: Steps) -> None:
    """The second to end must not find its images in the record of the first, and empty the output that both have."""
    begun = [steps.begin(partitions=1), steps.begin(partitions=1)]
    first = images_of(steps.run(begun[0], end=False))
    assert images_of(steps.run(begun[1], end=False)) == first != []
    assert read_list(json.loads(steps.begin()[0][0])["skip"]) == {*first}


def test_an_interrupted_run_leaves_no_record(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("components.predict.run.write_history", fail)
        with pytest.raises(RuntimeError):
            steps.run()
    assert list((steps.root / "scored").rglob("predictions.parquet")), "predictions of unfinished work"
    assert len(images_of(steps.run())) > 0


def test_an_alarm_is_in_the_run_of_the_pipeline(steps: Steps, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reference is that of the version, and predictions outlive the alarm."""
    predict(model=f"models:/{NAME}/2", raw=str(steps.raw), out=str(tmp_path / "known"), **steps.params.arguments("predict"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.monitor.run.FEWEST", 5)
        made = {"predictions": str(tmp_path / "known"), "out": str(tmp_path / "reference"), "params": steps.params.monitor}
        reference(**made, model=f"models:/{NAME}/2")
    path = tmp_path / "reference" / "reference.json"
    changed = json.loads(path.read_text())
    counts = changed["variables"]["brightness"]["counts"]
    changed["variables"]["brightness"]["counts"] = [sum(counts), *[0] * (len(counts) - 1)]  # the brightness was unknown
    path.write_text(json.dumps(changed))
    run_id = MlflowClient(tracking.uri()).get_model_version(NAME, "2").run_id
    MlflowClient(tracking.uri()).log_artifact(run_id, str(path))

    predictions = steps.run(steps.begin(f"models:/{NAME}/2"))
    assert len(images_of(predictions)) > 0
    assert steps.shown["monitor"]["alarm"] == 1.0 and "Alarm: the images have changed" in steps.page("monitor")
    assert "pipeline: ALARM, the scored images have changed" in caplog.text
    run = stage_runs("pipeline")[0]
    assert (run.data.tags["alarm"], run.info.status) == ("yes", "FINISHED")


def test_a_reference_with_features_is_refused_at_once(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.scoring_run.check_reference", lambda *_: {"backbone": "a" * 64})
    monkeypatch.setattr("pipelines.scoring_run.kept", lambda *_: ({}, ""))
    with pytest.raises(SystemExit) as ended:
        steps.begin()
    assert ended.value.code == 2
    assert "make one without --backbone" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("scoring", [], "--model: is missing; name the registered model of scoring"),
        ("scoring", ["--model", CHAMPION, "--start", "s3://b/moco.pth"], "--start s3://b/moco.pth: the pipeline scoring does not take it"),
        ("training", ["--model", CHAMPION], f"--model {CHAMPION}: the pipeline training does not take it"),
    ],
)
def test_mistakes(name: str, given: list[str], said: str, kubeflow: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", name, "--host", kubeflow.url, "--raw", RAW, *given]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_model(steps: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    for model, said in (
        ("models:/nobody@champion", "name a registered version"),
        ("s3://bucket/classify", "is not the address of a version"),
    ):
        with pytest.raises(SystemExit) as ended:
            steps.begin(model)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_submission(kubeflow: Double) -> None:
    assert main(["submit", "scoring", "--host", kubeflow.url, "--raw", RAW, "--model", CHAMPION]) == 0
    (run,) = kubeflow.runs.values()
    given = run["runtime_config"]["parameters"]
    assert set(given) == set(parameters.PARAMETERS["scoring"])
    assert (given["raw"], given["model"]) == (RAW, CHAMPION)


@pytest.mark.slow
def test_on_a_schedule(
    _registered: None, kubeflow: Double, mlflow_database: Path, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the package of a schedule on two nights, with files more on the second: only these are scored then."""
    place, new = Workplace(tmp_path, tmp_path / "raw"), last(cohort)
    shutil.copytree(cohort, place.raw, ignore=shutil.ignore_patterns("*.csv"))
    for path in new:
        (place.raw / path.relative_to(cohort)).unlink()
    isolate(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_text(json.dumps(CONTENT))
    given = ["--host", kubeflow.url, "--namespace", "cxr", "--settings", place.settings(), "--model", CHAMPION]
    assert main(["schedule", "scoring", "--cron", "0 3 * * *", "--raw", RAW, "--params", str(tmp_path / "params.yaml"), *given]) == 0

    monkeypatch.setenv("CXR_PSEUDONYM_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_database}")
    for night in range(2):
        run_schedule(kubeflow, f"scoring-night-{night}", place.raw, place.out, monkeypatch)
        for path in new:
            shutil.copy(path, place.raw / path.relative_to(cohort))
    record = place.out / "scored" / NAME / "1" / "predict"
    counts = sorted(len(images_of(path.parent)) for path in record.glob("*/run.json"))
    assert counts == [len(new), len(list(cohort.rglob("*.dcm"))) - len(new)]


@pytest.mark.slow
def test_on_this_machine(_registered: None, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_PSEUDONYM_KEY", KEY)
    (workplace.folder / "params.yaml").write_text(json.dumps(CONTENT))
    given = ["--raw", str(workplace.raw), "--model", CHAMPION, "--out", str(workplace.out), "--settings", workplace.settings()]
    for _ in range(2):
        assert main(["local", "scoring", *given, "--params", str(workplace.folder / "params.yaml")]) == 0
    record = workplace.out / "scored" / NAME / "1" / "predict"
    counts = sorted(len(images_of(path.parent)) for path in record.glob("*/run.json"))
    assert counts == [0, len(list(workplace.raw.rglob("*.dcm")))]
    assert {run.info.status for run in stage_runs("pipeline")[:2]} == {"FINISHED"}
