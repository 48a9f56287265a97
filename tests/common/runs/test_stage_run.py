import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from components.common.errors import RepeatingError, SharedError, TemporaryError, UserError
from components.common.runs import provenance, signals, storage, work
from components.common.runs.inputs import read_document, upstream_run_id
from components.common.runs.params import Evaluate, Register, Runtime, Section
from components.pretrain.params import Pretrain
from tests import seaweed

PARAMS = Evaluate(seed=1)
INPUTS = {"shards": "abc"}


def begin(out: Path | str, params: Section = PARAMS, inputs: dict[str, str] = INPUTS, **options: Any) -> work.Work:
    """Opens a run and releases its lock; returns its work in progress."""
    with open(out, params, inputs, **options) as begun:
        return begun


def open(out: Path | str, params: Section = PARAMS, inputs: dict[str, str] = INPUTS, **options: Any) -> AbstractContextManager[work.Work]:
    return work.open_work(work.Work, "evaluate", str(out), params, inputs, **options)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_output_appears_whole_and_nothing_else_remains(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = begin(out, upstream={"shards": "run1"})
    (begun.folder / "report.html").write_text("report")
    (begun.folder / "checkpoint").mkdir()
    (begun.folder / "checkpoint" / "x").write_text("")
    (begun.folder / "note").write_text("")
    assert not out.exists()

    begun.finish({"auroc": 0.5, "unknown": math.nan}, "run2", drop=("checkpoint", "note", "never-written"))

    assert files(tmp_path) == {"out", "out/report.html", "out/metrics.json", "out/run.json"}
    assert json.loads((out / "metrics.json").read_text()) == {"auroc": 0.5, "unknown": None}
    record = json.loads((out / "run.json").read_text())
    assert (record["params"]["resamples"], record["params"]["seed"]) == (2000, 1)
    assert (record["stage"], record["inputs"], record["mlflow_run_id"]) == ("evaluate", INPUTS, "run2")
    assert record["upstream_mlflow_run_ids"] == {"shards": "run1"}
    assert record["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_the_same_fingerprint_continues(tmp_path: Path) -> None:
    first = begin(tmp_path / "out")
    (first.folder / "progress").write_text("half")
    again = begin(f"{tmp_path / 'out'}/")
    assert (first.resumed, again.resumed) == (False, True)
    assert (again.folder / "progress").read_text() == "half"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": Evaluate(seed=2)}, "params.seed"),
        ({"inputs": {"shards": "def"}}, "inputs.shards"),
        ({"inputs": {}}, "inputs.shards"),
        ({"inputs": {**INPUTS, "more": "x"}}, "inputs.more"),
        ({"depends": {"ranks": 2}}, "ranks"),
    ],
)
def test_another_fingerprint_starts_afresh(change: dict[str, Any], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = begin(tmp_path / "out")
    other = begin(tmp_path / "out", **change)
    assert other.folder != first.folder
    assert not other.resumed
    assert caplog.messages == [f"evaluate: starts afresh; unfinished work in {first.folder} differs in {named}"]
    other.finish({})
    assert first.folder.is_dir()  # it can still be resumed


def test_other_threads_and_ranks_resume_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = begin(tmp_path / "out", rounding={"ranks": 1})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    other = begin(tmp_path / "out", rounding={"ranks": 4})
    assert other.fingerprint == one.fingerprint
    assert other.resumed
    assert caplog.messages == [
        "evaluate: resumes with threads 2 instead of 1, ranks 4 instead of 1; the result may differ in the last bits"
    ]


@pytest.mark.parametrize("batch_norm", ["shuffle", "sync"])
def test_parts_of_a_batch_decide_only_where_they_have_statistics_of_their_own(tmp_path: Path, batch_norm: str) -> None:
    params = [Pretrain(batch_norm=batch_norm, accumulate=count, probe_epochs=count) for count in (1, 2)]
    prints = [begin(tmp_path / "out", one).fingerprint for one in params]
    assert (prints[0] == prints[1]) == (batch_norm == "shuffle")


def test_an_output_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = begin(out)
    (first.folder / "only-in-the-first").write_text("")
    first.finish({"a": 1})
    begin(out, inputs={"shards": "def"}).finish({"a": 2})
    assert files(tmp_path) == {"out", "out/metrics.json", "out/run.json"}
    assert json.loads((out / "metrics.json").read_text()) == {"a": 2}


def test_files_left_by_dvc_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / ".gitignore").write_text("/report.html")
    begin(tmp_path).finish({})


@pytest.mark.parametrize("record", [None, "not json", '"text"', '{"stage": "preprocess"}'])
def test_never_replaces_what_it_did_not_make(record: str | None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    if record:
        (tmp_path / "run.json").write_text(record)
    with pytest.raises(UserError, match="holds files that evaluate did not make"):
        begin(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_out_must_be_a_folder_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        begin(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        begin(tmp_path / "file" / "out")


def test_the_lock_ends_with_the_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open(tmp_path / "out") as held:
        with pytest.raises(UserError, match="another process is making this output"), open(tmp_path / "out"):
            pass
        raise ZeroDivisionError
    with open(tmp_path / "out") as again:
        assert again.folder == held.folder


def test_one_process_per_output(tmp_path: Path) -> None:
    def attempt(results: Any) -> None:
        try:
            begin(tmp_path / "out")
            results.put("opened")
        except UserError as error:
            results.put(str(error))

    with open(tmp_path / "out") as held:
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        other = context.Process(target=attempt, args=(results,))
        other.start()
        assert "another process is making this output" in results.get(timeout=30)
        other.join()
        held.finish({})


def test_a_signal_does_not_cut_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop between deleting the checkpoint and publishing the output would lose hours of work."""
    before = signal.getsignal(signal.SIGTERM)
    signals.install()

    def signalled(target: Path, source: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(target, source)

    original = work.replace_folder
    monkeypatch.setattr(work, "replace_folder", signalled)
    try:
        begin(tmp_path / "out").finish({})
        assert signals.requested()
    finally:
        signals._stop.clear()
        signal.signal(signal.SIGTERM, before)
    assert files(tmp_path) == {"out", "out/metrics.json", "out/run.json"}


def test_inputs_are_read_with_their_digest(tmp_path: Path) -> None:
    begun = begin(tmp_path / "out")
    storage.write_json(begun.folder / "model.json", {"arch": "resnet18"})
    begun.finish({}, "run1")
    content, digest = read_document(str(tmp_path / "out"), "model.json", "classify")
    assert content == {"arch": "resnet18"}
    assert digest == storage.digest_file(tmp_path / "out" / "model.json")
    assert upstream_run_id(str(tmp_path / "out")) == "run1"


def test_inputs_that_are_not_there_or_not_finished(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError) as error:
            read_document(str(tmp_path), "model.json", "classify")
        return str(error.value)

    assert refused() == f"{tmp_path}/model.json: not found; {tmp_path} must be the output folder of classify"
    (tmp_path / "model.json").write_text("{")
    assert refused() == f"{tmp_path}: has no run.json, so classify has not finished; run it again"
    (tmp_path / "run.json").write_text("{}")
    assert refused() == f"{tmp_path}/model.json: not a JSON object; run classify again"


def test_git_state_agrees_with_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert provenance.git_state()["commit"] == (asked.stdout.strip() if asked.returncode == 0 else None)
    monkeypatch.setenv("GIT_COMMIT", "f00")
    assert provenance.git_state()["commit"] == "f00"


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage._client_of.cache_clear()
        yield f"s3://{seaweed.BUCKET}/out"
    storage._client_of.cache_clear()


@pytest.mark.services
def test_output_on_s3(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = begin(s3)
    storage.write_json(begun.folder / "model.json", {})
    (begun.folder / "checkpoint").mkdir()
    (begun.folder / "checkpoint" / "x").write_text("")

    with monkeypatch.context() as broken:  # the credentials expire after the computation
        broken.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        storage._client_of.cache_clear()
        with pytest.raises(UserError, match="credentials"):
            begun.finish({}, drop=("checkpoint",))
    storage._client_of.cache_clear()
    assert (begun.folder / "checkpoint" / "x").exists()

    begin(s3).finish({"a": 1}, drop=("checkpoint",))
    assert [entry.path for entry in storage.listing(s3)] == ["metrics.json", "model.json", "run.json"]
    assert read_document(s3, "model.json", "classify")[0] == {}
    assert files(tmp_path) == {".partial"}

    storage.delete(f"{s3}/run.json")
    with pytest.raises(UserError, match="has not finished"):
        read_document(s3, "model.json", "classify")


def test_work_for_an_output_on_s3_is_kept_on_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod retried on another node shares only the volume with the first one."""
    monkeypatch.setattr(work, "_refuse_foreign", lambda stage, out: None)  # it would query the server
    monkeypatch.setenv(work.WORK_VARIABLE, str(tmp_path / "volume"))
    for pod, resumed in (("first", False), ("second", True)):
        (tmp_path / pod).mkdir()
        monkeypatch.chdir(tmp_path / pod)
        begun = begin("s3://bucket/out")
        assert begun.resumed == resumed
        assert begun.folder.is_relative_to(tmp_path / "volume")
        assert not list((tmp_path / pod).iterdir())


def test_sections_of_other_stages_have_other_fingerprints(tmp_path: Path) -> None:
    with (
        work.open_work(work.Work, "a", str(tmp_path / "a"), Register(), {}) as one,
        work.open_work(work.Work, "b", str(tmp_path / "b"), Register(), {}) as other,
    ):
        assert one.fingerprint != other.fingerprint


def fail(out: str, error: UserError, **options: Any) -> None:
    """Opens a run that ends with an error."""
    with pytest.raises(type(error), match=f"^{error}$"), open(out, **options):
        raise error


def assert_not_repeated(out: str) -> None:
    """Lets a computation fail in a pipeline, and checks when it is begun again."""
    fail(out, RepeatingError("the loss is nan"), runtime=Runtime())
    with pytest.raises(UserError, match=r"^the loss is nan \(an earlier attempt ended so, .* or delete .*\.failed\)$") as refused:
        begin(out, runtime=Runtime())
    assert not refused.value.temporary
    for change in (
        {"params": Evaluate(seed=2)},
        {"inputs": {"shards": "def"}},
        {"runtime": Runtime(compile=True)},
        {"rounding": {"ranks": 2}},
    ):
        begin(out, **{"runtime": Runtime(), **change})
    note = str(refused.value).removesuffix(")").rpartition(" ")[2]
    storage.delete(note)
    begin(out, runtime=Runtime())
    fail(out, SharedError("of another process", repeats=True))
    assert storage.exists(note)
    begin(out, runtime=Runtime()).finish({})
    assert not storage.exists(note)


def test_a_computation_that_failed_in_a_pipeline_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "run")
    assert_not_repeated(str(tmp_path / "out"))


@pytest.mark.services
def test_neither_is_one_whose_pod_had_a_work_folder_of_its_own(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KFP_RUN_ID", "run")
    assert_not_repeated(s3)
    fail(f"{s3}2", RepeatingError("the loss is nan"))
    shutil.rmtree(tmp_path / ".partial")
    with pytest.raises(UserError, match="an earlier attempt ended so"):
        begin(f"{s3}2")


@pytest.mark.parametrize("error", [UserError("no disk"), TemporaryError("no server")])
def test_other_errors_leave_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: UserError) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "run")
    fail(str(tmp_path / "out"), error)
    begin(tmp_path / "out")


def test_by_hand_everything_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    fail(str(tmp_path / "out"), RepeatingError("the loss is nan"))
    begin(tmp_path / "out")
