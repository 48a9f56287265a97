"""Pipelines on this machine, each step in a process of its own, compared with the stages run one after the other."""

import builtins
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.classify.run import run as classify
from components.common.runs import tracking
from components.common.runs.storage import digest_file
from components.detect.run import run as detect
from components.evaluate.run import run as evaluate
from components.invert.run import run as invert
from components.preprocess.run import run as preprocess
from components.pretrain.run import run as pretrain
from pipelines import packages
from pipelines.__main__ import main
from tests import webhook
from tests.pipelines.conftest import Workplace

HEADS: dict[str, Callable[..., None]] = {"classify": classify, "detect": detect, "invert": invert}
KILLER = """
    # Kills the first pretraining process as soon as it has written a checkpoint.
    import glob, os, signal, sys, threading, time

    def watch(root, marker):
        while not glob.glob(f"{root}/pretrain/*.partial/*/checkpoints/*.pt"):
            time.sleep(0.005)
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

    ours = "--function_to_execute pretrain" in open("/proc/self/cmdline").read().replace("\\0", " ")
    marker = os.environ["KILLER_MARKER"]
    if ours and not os.path.exists(marker):
        threading.Thread(target=watch, args=(os.environ["KILLER_ROOT"], marker), daemon=True).start()
"""


def run(workplace: Workplace, settings: str, *more: str, name: str = "training") -> int:
    raw = ["--raw", str(workplace.raw)]
    files = ["--settings", settings, "--params", str(workplace.folder / "params.yaml")]
    return main(["local", name, *raw, "--out", str(workplace.out), *files, *more])


def pipeline_status() -> tuple[str, set[str]]:
    """Returns the status of the MLflow run of the last pipeline, and those of its child runs."""
    client = MlflowClient(tracking.uri())
    names = {found.experiment_id: found.name for found in client.search_experiments()}
    runs = client.search_runs(list(names), order_by=["attributes.start_time DESC"])
    parent = next(one for one in runs if names[one.info.experiment_id] == "pipeline")
    below = {one.info.status for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    return parent.info.status, below


def kill_first_attempt(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Arranges for the first pretraining process to be killed; returns the file that is written when it is."""
    (workplace.folder / "killer").mkdir()
    (workplace.folder / "killer" / "sitecustomize.py").write_text(textwrap.dedent(KILLER))
    marker = workplace.folder / "killed"
    monkeypatch.setenv("PYTHONPATH", str(workplace.folder / "killer"))
    monkeypatch.setenv("KILLER_ROOT", str(workplace.out))
    monkeypatch.setenv("KILLER_MARKER", str(marker))
    return marker


def by_hand(workplace: Workplace, *heads: str, start: str | None = None) -> Path:
    """Runs the same stages one after the other in this process, without partitions."""
    folder, params = workplace.folder / "hand", workplace.params
    shards, backbone = str(folder / "shards"), str(folder / "pretrain")
    preprocess(raw=str(workplace.raw), out=shards, **params.arguments("preprocess"))
    pretrain(shards=[shards], out=backbone, start=start, **params.arguments("pretrain"))
    for name in heads:
        HEADS[name](shards=[shards], backbone=backbone, out=str(folder / name), **params.arguments(name))
    evaluate(predictions=[str(folder / name) for name in heads], out=str(folder / "evaluate"), **params.arguments("evaluate"))
    return folder


def compare(workplace: Workplace, folder: Path, *heads: str) -> None:
    """Compares shards, weights and metrics of a pipeline with another run, whose outputs are in folders named by stage."""
    parts = sorted(path.name for path in folder.glob("shards/part-*.parquet"))
    assert len(parts) == 2
    for name in [*parts, "manifest.json"]:
        assert digest_file(workplace.output("shards") / name) == digest_file(folder / "shards" / name)
    for stage, name in (("pretrain", "backbone.safetensors"), *((head, "model.safetensors") for head in heads)):
        assert digest_file(workplace.output(stage) / name) == digest_file(folder / stage / name)
    for stage in ("pretrain", *heads, "evaluate"):
        ours, theirs = (json.loads((output / "metrics.json").read_text()) for output in (workplace.output(stage), folder / stage))
        assert ours == theirs


def test_preempted_training_gives_the_same_result(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers partitions, a starting point, a step that is killed and retried, a gate that refuses, and the exit step."""
    marker = kill_first_attempt(workplace, monkeypatch)
    start = workplace.start(seed=1)

    with webhook.serve(monkeypatch, "slack") as posted:
        assert run(workplace, workplace.settings(pretrain=1), "--set", "register.min_auroc=1", "--start", start) == 0

    (sent,) = posted.messages
    webhook.check(sent, "slack")
    assert sent["text"] == "training: succeeded"
    assert sent["blocks"][1]["text"]["text"].startswith("*evaluate*: classify: Macro AUROC ")

    assert marker.exists(), "the first attempt was not killed"
    assert json.loads((workplace.output("pretrain") / "run.json").read_text())["resumed"]
    assert not list(workplace.out.glob("register/*"))
    assert pipeline_status() == ("FINISHED", {"FINISHED"})
    compare(workplace, by_hand(workplace, "classify", start=start), "classify")


@pytest.mark.slow
def test_a_training_that_diverges_is_not_begun_again(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither by the attempts of the step, nor when its pod is replaced, as kfp does here, nor when the pipeline is submitted again."""
    settings = workplace.settings(pretrain=5)
    assert run(workplace, settings, "--set", "pretrain.lr=1e30") == 1
    first, refused = capfd.readouterr().out, "(an earlier attempt ended so, and another would, too: change the parameters"
    assert (first.count("pretrain: the loss is nan at step"), first.count(refused)) == (6, 5)
    assert "the next one begins" not in first
    assert run(workplace, settings, "--set", "pretrain.lr=1e30") == 1
    assert capfd.readouterr().out.count(refused) == 6
    (note,) = workplace.out.glob("pretrain/*.partial/*.failed")
    note.unlink()
    assert run(workplace, workplace.settings(), "--set", "pretrain.lr=1e30") == 1
    assert refused not in capfd.readouterr().out


def registered(workplace: Workplace) -> set[str]:
    """Returns the names of the registered models."""
    return {json.loads(path.read_text())["name"] for path in workplace.out.glob("register/*/registration.json")}


@pytest.mark.slow
def test_all_heads(workplace: Workplace) -> None:
    """All models are trained in parallel and evaluated together."""
    heads = ("classify", "detect", "invert")
    arguments = ("--set", "register.min_auroc=1", "--set", "register.name=another")
    assert run(workplace, workplace.settings({"heads": list(heads)}), *arguments) == 0

    compare(workplace, by_hand(workplace, *heads), *heads)
    metrics = json.loads((workplace.output("evaluate") / "metrics.json").read_text())
    for measure in ("classify_test_auroc_macro", "detect_test_map_50", "invert_test_psnr"):
        assert measure in metrics
    assert registered(workplace) == {"cxr-detect", "cxr-invert"}, "register.min_auroc keeps the classifier out"
    assert pipeline_status() == ("FINISHED", {"FINISHED"})


@pytest.mark.slow
def test_a_second_run_takes_other_folders_for_other_parameters(workplace: Workplace) -> None:
    settings = workplace.settings()
    for seed in (0, 1):
        assert run(workplace, settings, "--set", "register.min_auroc=1", "--set", f"classify.seed={seed}") == 0
    assert len(list(workplace.out.glob("pretrain/*/run.json"))) == 1, "the same parameters, the same folder"
    assert len(list(workplace.out.glob("classify/*/run.json"))) == 2


@pytest.mark.slow
def test_a_changed_starting_point_gives_another_backbone(workplace: Workplace) -> None:
    for seed in (1, 2, 2):
        assert run(workplace, workplace.settings(), "--set", "register.min_auroc=1", "--start", workplace.start(seed)) == 0
    records = [json.loads(path.read_text()) for path in workplace.out.glob("pretrain/*/run.json")]
    assert len(records) == len({record["inputs"]["start"] for record in records}) == 2


@pytest.mark.slow
def test_after_a_failure_the_last_step_closes_the_mlflow_run(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(workplace, workplace.settings(classify=1), "--set", "classify.arch=resnet50") == 1
    shown = capfd.readouterr()
    mistake = "the backbone is a resnet18, the parameters ask for resnet50; set arch to match"
    assert shown.out.count(mistake) == 1, "a mistake is not tried again"
    assert "local: Pipeline" in shown.err.splitlines()[-1]
    assert pipeline_status()[0] == "FAILED"
    assert not list(workplace.out.glob("evaluate/*"))


@pytest.mark.slow
def test_smoke_needs_no_data_and_passes_the_gate(workplace: Workplace) -> None:
    assert run(workplace, workplace.settings(), name="smoke") == 0
    registration = json.loads((workplace.output("register") / "registration.json").read_text())
    assert registration["min_auroc"] == 0.0
    assert registration["alias"] in ("champion", "challenger")
    assert pipeline_status() == ("FINISHED", {"FINISHED"})


def test_missing_data(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "training", "--raw", "nowhere", "--params", str(workplace.folder / "params.yaml")]) == 2
    assert "--raw nowhere: no such folder" in capsys.readouterr().err
    assert run(workplace, workplace.settings(), "--start", "nowhere.pth") == 2
    assert "--start nowhere.pth: no such file or folder" in capsys.readouterr().err


def test_a_missing_container_engine(workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{workplace.folder}/nobody.sock")
    assert run(workplace, workplace.settings(), "--runner", "docker") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"local: unix://{workplace.folder}/nobody.sock: no container engine answers; start Docker")


def test_print_is_restored_after_the_run(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp replaces it to indent the output of steps; parallel threads may leave it replaced."""
    ours = builtins.print
    monkeypatch.setattr(builtins, "print", ours)
    monkeypatch.setattr(packages, "build", lambda *_: lambda **_: setattr(builtins, "print", lambda *_, **__: None))
    assert run(workplace, workplace.settings()) == 0
    assert builtins.print is ours
