"""The command `clean`, on outputs that `stage_run` publishes and MLflow records."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.common.errors import UserError
from components.common.formats.documents import RUN_RECORD
from components.common.runs import storage, tracking
from components.common.runs.params import Evaluate
from components.common.runs.stage_run import stage_run
from components.common.runs.work import UPLOADING, partial_folder
from pipelines import clean, outputs
from pipelines.__main__ import main
from tests import mlflow_server, seaweed
from tests.pipelines.conftest import Workplace, isolate

DAY = 86400.0
LATER = 100  # days by which the clock of `clean` is ahead of that of the stages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def _later(tmp_path: Path, own_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "_now", lambda: time.time() + LATER * DAY)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.services)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "root")
        return
    for name, value in request.getfixturevalue("server").items():
        monkeypatch.setenv(name, value)
    storage._client_of.cache_clear()
    yield f"s3://{seaweed.BUCKET}/{storage.digest(request.node.name.encode())[:8]}/root"
    storage._client_of.cache_clear()


def make(root: str, path: str, *inputs: str, files: tuple[str, ...] = ("model.json", "figures/a.png"), days: float = 0) -> str:
    """Publishes an output that names other outputs as its inputs; `days` after the others. Returns its MLflow run."""
    folders = {f"input{number}": storage.join(root, each) for number, each in enumerate(inputs)}
    digests = {name: storage.digest(storage.read(storage.join(folder, "model.json"))) for name, folder in folders.items()}
    upstream = {name: json.loads(storage.read(storage.join(folder, RUN_RECORD)))["mlflow_run_id"] for name, folder in folders.items()}
    uri = storage.join(root, path)
    with stage_run(path.split("/")[0], uri, Evaluate(), digests, upstream=upstream, depends={"path": path}) as job:
        for name in files:
            storage.write(str(job.folder / name), path.encode())
        job.publish({})
    if days:
        record = json.loads(storage.read(storage.join(uri, RUN_RECORD)))
        record["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * DAY))
        storage.write(storage.join(uri, RUN_RECORD), json.dumps(record).encode())
    return str(json.loads(storage.read(storage.join(uri, RUN_RECORD)))["mlflow_run_id"])


def register(run_id: str, source: str = "s3://elsewhere/model", **more: str) -> None:
    client = MlflowClient(tracking.uri())
    client.create_registered_model("cxr-classify")
    client.create_model_version("cxr-classify", source, run_id, tags=more)
    client.set_registered_model_alias("cxr-classify", "champion", "1")


def content(root: str) -> dict[str, bytes]:
    return {entry.path: storage.read(storage.join(root, entry.path)) for entry in storage.walk(root)}


def below(found: dict[str, bytes], *paths: str) -> dict[str, bytes]:
    return {path: each for path, each in found.items() if path.startswith(tuple(f"{path}/" for path in paths))}


def call(root: str, *more: str, age: str = "90d") -> int:
    return main(["clean", "--older-than", age, "--root", root, *more])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Returns the single line of an error message."""
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    return err.strip()


def test_only_what_nothing_depends_on_is_deleted(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(root, "shards/a")
    make(root, "pretrain/a", "shards/a")
    make(root, "classify/a", "shards/a", "pretrain/a")
    make(root, "evaluate/a", "classify/a")
    model = storage.digest(storage.read(storage.join(root, "classify/a/model.json")))
    register(make(root, "register/a", "classify/a", "evaluate/a"), **{"input.model.sha256": model})
    make(root, "reference/a", "classify/a")
    make(root, "shards/scored")
    make(root, "predict/a", "register/a", "shards/scored")
    make(root, "predict/old", "shards/scored")
    make(root, "classify/old", "shards/a", "pretrain/a")
    make(root, "shards/b")
    make(root, "classify/b", "shards/b")
    make(root, "evaluate/b", "classify/b", days=20)
    make(root, "shards/old")
    make(root, "reference/old", "shards/old")
    make(root, "study/k/cells/a", "shards/old")
    for name in ("raw/a.dcm", "labels.csv", "classify/note.txt"):
        storage.write(storage.join(root, name), b"not an output")
    before = content(root)
    old = below(before, *(gone := ("classify/old", "shards/old", "reference/old", "shards/scored", "predict/old", "study/k/cells/a")))

    assert call(root, "--dry-run") == 0

    lines = {line.split("  ")[-1].partition(":")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert content(root) == before
    assert "100 d  shards/a: cxr-classify version 1, champion, needs it" in lines["shards/a"]
    assert "80 d  evaluate/b: younger" in lines["evaluate/b"]
    assert "shards/b: evaluate/b needs it" in lines["shards/b"]
    assert "reference/a: the reference of a registered model" in lines["reference/a"]
    assert "predict/a: what a registered model has scored, which it does not score again" in lines["predict/a"]
    assert {path for path, line in lines.items() if line.startswith("delete")} == {*gone}
    assert call(root) == 0
    assert content(root) == {path: each for path, each in before.items() if path not in old}
    assert "6 outputs," in capsys.readouterr().out.splitlines()[-1]
    assert call(root) == 0
    assert "0 outputs, 0.0 B deleted" in capsys.readouterr().out
    if not storage.is_s3(root):
        assert not Path(root, "classify", "old").exists()


def test_runs_keep_what_they_read(root: str) -> None:
    """Runs that are young, open, or of a registered version, even if their own outputs are not below the root."""
    made = {name: make(root, f"classify/{name}") for name in ("young", "open", "registered", "digest", "dead")}
    client, later = MlflowClient(tracking.uri()), int((time.time() + 20 * DAY) * 1000)
    experiment = tracking.experiment(client, "evaluate")
    client.create_run(experiment, later, {"upstream.predictions.run_id": made["young"]})
    client.create_run(experiment, tags={"upstream.predictions.run_id": made["open"]})
    dead = client.create_run(experiment, tags={"upstream.predictions.run_id": made["dead"]}).info.run_id
    client.set_terminated(dead, "FAILED")
    between = client.create_run(experiment, tags={"upstream.predictions.run_id": made["registered"]}).info.run_id
    client.set_terminated(between)
    digest = storage.digest(storage.read(storage.join(root, "classify/digest/model.json")))
    register(between, **{"train.inputs.shards": digest})

    assert call(root) == 0

    assert {path.split("/")[1] for path in content(root)} == {"young", "open", "registered", "digest"}


def test_a_version_that_was_registered_from_a_folder(root: str) -> None:
    make(root, "register/a", files=("model/MLmodel", "model.json"))
    make(root, "register/ab")
    uri = storage.join(root, "register/a/model")
    register("", source=uri if storage.is_s3(root) else f"file://{uri}")
    assert call(root) == 0
    assert {path.split("/")[1] for path in content(root)} == {"a"}


def test_nothing_is_deleted_without_mlflow(
    tmp_path: Path, empty_mlflow: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "root")
    make(root, "classify/old")
    before = content(root)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert "http://127.0.0.1:9" in refused(capsys, call(root))
    with monkeypatch.context() as patch:  # another server, which knows nothing
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_mlflow}")
        assert call(root, "--dry-run") == 0
        assert "so that nothing is known of what comes from it" in capsys.readouterr().out
        assert call(root) == 0
    assert content(root) == before
    client = MlflowClient(tracking.uri())
    run = client.create_run(tracking.experiment(client, "pipeline"), tags={"stage": "pipeline"}, run_name="scoring").info.run_id
    assert (
        f"the pipeline run scoring is open in MLflow, and may take any output from the cache; wait for its end, or, if it was lost, \
`mlflow runs delete --run-id {run}`"
        in refused(capsys, call(root))
    )
    assert content(root) == before
    client.delete_run(run)
    assert call(root) == 0
    assert not content(root)


def test_what_is_not_only_an_output_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    make(str(root), "shards/early")
    for name, inputs in {"foreign": (), "linked": (), "listed": (), "early": ("shards/early",), "strange": ()}.items():
        make(str(root), f"classify/{name}", *inputs)
    make(str(outside), "classify/a")
    (root / "classify/foreign/notes.txt").write_text("mine")
    (root / "classify/linked/figures/a.png").unlink()
    (root / "classify/linked/figures/a.png").symlink_to(outside / "classify/a/figures/a.png")
    (root / "classify/link").symlink_to(outside / "classify/a")
    (root / "more").symlink_to(outside)
    (root / "elsewhere").mkdir()
    (root / "elsewhere/run.json").write_text('{"name": "of somebody else"}')
    record = json.loads((root / "classify/early/run.json").read_text())
    del record["files"]
    (root / "classify/early/run.json").write_text(json.dumps(record))
    record = json.loads((root / "classify/listed/run.json").read_text())
    record["files"] += ["../early/model.json", str(outside / "classify/a/model.json"), "figures"]
    (root / "classify/listed/run.json").write_text(json.dumps(record))
    before, beside = content(str(root)), content(str(outside))

    assert call(str(root)) == 0

    gone = below(before, "classify/listed", "classify/strange")
    assert content(str(root)) == {path: each for path, each in before.items() if path not in gone}
    assert content(str(outside)) == beside
    assert (root / "classify/linked/figures/a.png").is_symlink()
    capsys.readouterr()
    assert call(str(root), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "classify/foreign: holds notes.txt, which is not part of it" in out
    assert "classify/linked: figures/a.png is a link" in out
    assert "classify/early: its run.json is not one of this project, or of an early version" in out
    assert "shards/early: classify/early needs it" in out
    assert "elsewhere: its run.json is not one" in out


def test_an_interrupted_deletion_goes_on(root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make(root, "classify/old")
    before, delete, count = content(root), storage.delete, 0
    for survive in range(1, len(before) + 1):  # run.json, each file, and the note
        with monkeypatch.context() as patch:
            left = survive

            def dying(uri: str) -> None:
                nonlocal left
                left -= 1
                if left <= 0:
                    raise KeyboardInterrupt
                delete(uri)

            patch.setattr(storage, "delete", dying)
            patch.setattr(outputs, "_PARALLEL", 1)
            assert call(root) == 130
        found = content(root)
        complete = RUN_RECORD in {Path(path).name for path in found}
        assert not complete or {path: found[path] for path in before} == before, "a folder with run.json is complete"
        count += not complete
        if survive == 3:  # a stage may publish there at any time
            make(root, "classify/old")
            assert {path: each for path, each in content(root).items() if RUN_RECORD not in path} == {
                path: each for path, each in before.items() if RUN_RECORD not in path
            }
    assert count >= 2
    monkeypatch.setattr(clean, "_now", time.time)  # its age does not count any more
    assert call(root) == 0
    assert storage.is_empty(root)


def test_an_interrupted_upload_is_deleted_once_it_is_old(root: str) -> None:
    make(root, "classify/a")
    storage.write(storage.join(root, "classify/b", UPLOADING), b'{"stage": "classify", "files": ["model.json"]}')
    storage.write(storage.join(root, "classify/b/model.json"), b"{}")
    make(root, "classify/c", days=50)
    assert call(root, age="101d") == 0
    assert {path.split("/")[1] for path in content(root)} == {"a", "b", "c"}
    assert call(root) == 0
    assert {path.split("/")[1] for path in content(root)} == {"c"}


def test_unfinished_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Old work without a process is deleted, and keeps nothing; work in progress and young work are kept, with their inputs."""
    root = str(tmp_path / "root")
    for name in ("read-by-old", "read-by-young", "made-anew"):
        make(root, f"shards/{name}")

    def begin(name: str, *inputs: str) -> Path:
        digests = {each: storage.digest((Path(root) / each / "model.json").read_bytes()) for each in inputs}
        with pytest.raises(UserError), stage_run("pretrain", storage.join(root, name), Evaluate(), digests) as job:
            (job.folder / "checkpoint.pt").write_bytes(b"1234")
            raise UserError("stopped")
        return job.folder

    old, young = begin("pretrain/old", "shards/read-by-old"), begin("pretrain/young", "shards/read-by-young")
    later = time.time() + 20 * DAY
    os.utime(young / "checkpoint.pt", (later, later))
    (old.parent / "run.unsent").write_text('{"uri": "another server"}')
    with stage_run("pretrain", storage.join(root, "pretrain/working"), Evaluate(), {}, connect=False) as working:
        (working.folder / "checkpoint.pt").write_bytes(b"1234")
        with stage_run("shards", storage.join(root, "shards/made-anew"), Evaluate(), {"other": "1"}):
            assert call(root) == 0
    assert "a process is working on it" in capsys.readouterr().out
    assert not old.exists()
    assert [path.name for path in old.parent.iterdir()] == ["run.unsent"], "messages to MLflow are still to be sent"
    assert (young / "checkpoint.pt").exists()
    assert (working.folder / "checkpoint.pt").exists()
    assert sorted(path.parent.name for path in Path(root).glob("shards/*/run.json")) == ["made-anew", "read-by-young"]
    assert not list(partial_folder(storage.join(root, "pretrain/old")).glob("*.json"))


def test_what_changes_meanwhile_is_kept(root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An output that was made anew since it was listed, and one that a run has read that began since."""
    for name in ("anew", "read", "old"):
        make(root, f"classify/{name}")
    needed = json.loads(storage.read(storage.join(root, "classify/read/run.json")))["mlflow_run_id"]
    find = outputs.find

    def and_then(root: str) -> list[outputs.Found]:
        found = find(root)
        make(root, "classify/anew", days=1)
        return found

    update = clean.Lineage.update

    def later(lineage: clean.Lineage) -> None:
        if lineage._asked:
            client = MlflowClient(tracking.uri())
            client.create_run(tracking.experiment(client, "evaluate"), tags={"upstream.predictions.run_id": needed})
        update(lineage)

    monkeypatch.setattr(outputs, "find", and_then)
    monkeypatch.setattr(clean.Lineage, "update", later)
    monkeypatch.setattr(clean, "UPDATE_SECONDS", -1.0)
    assert call(root) == 0
    assert {path.split("/")[1] for path in content(root)} == {"anew", "read"}
    assert "kept classify/anew: it has changed meanwhile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "90"], "--older-than 90: must be days or weeks, such as 90d or 12w, at least 1d"),
        (["--older-than", "0d"], "--older-than 0d: must be"),
        (["--older-than", "1h"], "--older-than 1h: must be"),
        (["--older-than", "-1d", "--root", "x"], "expected one argument"),
        (["--older-than", "1d"], "--root: is missing; give the folder or prefix of all outputs, or the --settings"),
        (["--older-than", "1d", "--root", "nowhere"], "nowhere: no such folder; give the folder or prefix"),
        (["--root", "x"], "--older-than"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["clean", *arguments])
    except SystemExit as exit:
        code = int(str(exit.code))
    assert said in refused(capsys, code)


@pytest.mark.services
@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_many_objects_and_versions(root: str) -> None:
    """More objects than a page of S3 holds; of a bucket with versions, only the present ones are deleted, which can be undone."""
    client = storage._client()
    client.put_bucket_versioning(Bucket=seaweed.BUCKET, VersioningConfiguration={"Status": "Enabled"})
    try:
        files = tuple(f"figures/{number}.png" for number in range(1005))
        make(root, "classify/old", files=files)
        make(f"{root}-beside", "classify/old")
        beside = content(f"{root}-beside")
        assert call(root) == 0
        assert storage.is_empty(root)
        assert content(f"{root}-beside") == beside
        prefix = root.removeprefix(f"s3://{seaweed.BUCKET}/")
        listed = client.list_object_versions(Bucket=seaweed.BUCKET, Prefix=f"{prefix}/classify/old/figures/1.png")
        (version,) = listed["Versions"]
        kept = client.get_object(Bucket=seaweed.BUCKET, Key=version["Key"], VersionId=version["VersionId"])
        assert kept["Body"].read() == b"classify/old"
    finally:
        client.put_bucket_versioning(Bucket=seaweed.BUCKET, VersioningConfiguration={"Status": "Suspended"})


@pytest.mark.slow
def test_after_a_pipeline(tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All outputs of a real pipeline are what its registered model comes from, and none is once the version is deleted."""
    isolate(tmp_path, monkeypatch)
    place = Workplace(tmp_path, cohort)
    given = ["--raw", str(place.raw), "--out", str(place.out), "--settings", place.settings(), "--params", str(tmp_path / "params.yaml")]
    assert main(["local", "training", *given]) == 0
    made = {str(path.parent.relative_to(place.out)) for path in place.out.glob("*/*/run.json")}
    assert {path.split("/")[0] for path in made} == {"preprocess", "shards", "pretrain", "classify", "evaluate", "register"}
    before = content(str(place.out))
    capsys.readouterr()

    assert call(str(place.out), "--dry-run") == 0

    assert capsys.readouterr().out.count("cxr-classify version 1, champion, needs it") == len(made) == 7
    assert call(str(place.out)) == 0
    assert content(str(place.out)) == before
    MlflowClient(tracking.uri()).delete_model_version("cxr-classify", "1")
    assert call(str(place.out)) == 0
    assert content(str(place.out)) == {path: each for path, each in before.items() if path.startswith("ui/")}


@pytest.mark.services
def test_models_that_this_user_may_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.server.auth.client import AuthServiceClient

    with mlflow_server.serve(tmp_path / "server", login=True) as running:
        for name, value in {"MLFLOW_TRACKING_URI": running.address, **mlflow_server.LOGIN}.items():
            monkeypatch.setenv(name, value)
        root = str(tmp_path / "root")
        run_id = make(root, "register/a")
        MlflowClient(tracking.uri()).set_tag(run_id, "registered.name", "cxr-classify")
        register(run_id)
        AuthServiceClient(running.address).create_user("guest", "correct-horse-battery-2")
        AuthServiceClient(running.address).grant_user_permission("guest", "registered_model", "cxr-classify", "DENY")
        before = content(root)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "guest")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse-battery-2")
        assert MlflowClient(tracking.uri()).search_registered_models() == []

        assert "the user guest needs the permission READ on the registered model" in refused(capsys, call(root))

        assert content(root) == before
