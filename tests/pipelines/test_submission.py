"""The command `submit` against a double of the API."""

from pathlib import Path

import pytest
import yaml

from pipelines import packages, parameters, server, settings
from pipelines.__main__ import main
from tests import ROOT
from tests.pipelines import double
from tests.pipelines.conftest import RAW, submit


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Returns the single line of an error message."""
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err.strip()


def test_a_run_is_started_with_all_parameters(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow, "--experiment", "mine", "--set", "pretrain.epochs=3", "--start", "s3://bucket/moco.pth") == 0

    (run,) = kubeflow.runs.values()
    given = run["runtime_config"]["parameters"]
    assert (given["raw"], given["start"], given["root"]) == (RAW, "s3://bucket/moco.pth", "s3://cxr/artifacts")
    assert yaml.safe_load(given["pretrain"])["epochs"] == 3
    assert run["service_account"] == "cxr-pipelines"
    assert run["plugins_input"] == {"mlflow": {"disabled": True}}
    assert [one["display_name"] for one in kubeflow.experiments.values()] == ["mine"]
    assert f"{kubeflow.url}/#/runs/details/{run['run_id']}" in capsys.readouterr().out


def test_a_version_is_named_by_commit_and_content(kubeflow: double.Double) -> None:
    assert submit(kubeflow) == submit(kubeflow) == submit(kubeflow, "--set", "pretrain.epochs=3") == 0

    names = [one["display_name"] for one in kubeflow.versions.values()]
    commit = settings.commit()
    assert len(names) == 2, "the second submission uses the existing version"
    assert all(name.startswith(commit) for name in names)
    assert len(kubeflow.pipelines) == 1
    assert len(kubeflow.runs) == 3


def test_smoke_has_no_raw_files(kubeflow: double.Double) -> None:
    assert submit(kubeflow, name="smoke") == 0
    (run,) = kubeflow.runs.values()
    assert "raw" not in run["runtime_config"]["parameters"]


def test_a_dry_run_sends_nothing(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(kubeflow, "--dry-run") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["parameters"]["raw"] == RAW
    assert shown["gpus"] == {"pretrain": 1, "classify": 1, "detect": 1, "invert": 1, "at most": 3}
    assert not kubeflow.pipelines
    assert not kubeflow.experiments


def test_token_file_token_and_cookie(kubeflow: double.Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = "secret"
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv(server.TOKEN_FILE_VARIABLE, str(tmp_path / "token"))
    assert submit(kubeflow) == 0
    monkeypatch.delenv(server.TOKEN_FILE_VARIABLE)
    monkeypatch.setenv(server.TOKEN_VARIABLE, "secret")
    assert submit(kubeflow) == 0
    kubeflow.token, kubeflow.cookie = "", "session=1"
    monkeypatch.setenv(server.COOKIE_VARIABLE, "session=1")
    assert submit(kubeflow) == 0


def test_missing_credentials(kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = "secret"
    assert "answers 401, Unauthenticated; set KFP_TOKEN" in refused(capsys, submit(kubeflow))
    monkeypatch.setenv(server.TOKEN_FILE_VARIABLE, "/nowhere")
    assert "/nowhere cannot be read" in refused(capsys, submit(kubeflow))


def test_a_login_page(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.page = b"<html>log in</html>"
    assert "is not the API of Kubeflow Pipelines" in refused(capsys, submit(kubeflow))


def test_a_server_that_is_down(capsys: pytest.CaptureFixture[str], kubeflow: double.Double) -> None:
    code = main(["submit", "smoke", "--host", "http://127.0.0.1:9"])
    assert "http://127.0.0.1:9: Connection refused" in refused(capsys, code).replace("[Errno 111] ", "")


def test_a_server_that_is_slow(kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT_SECONDS", (1, 1))
    kubeflow.silence = 3
    assert "no answer within 1 s" in refused(capsys, submit(kubeflow))


def test_a_refused_package(kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "compile_to", lambda path, *others: path.write_text("root: {dag: {tasks: {a: {colour: red}}}}"))
    assert "refuses with 400, invalid pipeline spec:" in refused(capsys, submit(kubeflow))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda given: given | {"colour": "red"}, "parameter colour is not in the pipeline"),
        (lambda given: {name: value for name, value in given.items() if name != "raw"}, "parameters raw are missing"),
        (lambda given: given | {"min_auroc": "0.7"}, "parameter min_auroc must be NUMBER_DOUBLE"),
    ],
)
def test_refused_parameters(
    kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: object, said: str
) -> None:
    """The double is strict about parameters, and a refusal is one line."""
    right = parameters.arguments
    monkeypatch.setattr(parameters, "arguments", lambda *given: change(right(*given)))  # type: ignore[operator]
    assert said in refused(capsys, submit(kubeflow))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "training", "--raw", "data", "--host", "http://x"], "--raw data: must be an s3:// URI"),
        (["submit", "training", "--raw", RAW, "--start", "moco.pth", "--host", "http://x"], "--start moco.pth: must be an s3:// URI"),
        (["submit", "training", "--raw", RAW, "--host", "x"], "--host x: must begin with http"),
        (["submit", "smoke", "--host", "http://x", "--settings", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["submit", "smoke", "--host", "http://x", "--set", "pretrain.epoch=1"], "did you mean epochs?"),
        (["compile", "training", "--out", "x.txt"], "must end in .yaml"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert said in refused(capsys, main(arguments))


@pytest.mark.parametrize(
    ("multi_user", "namespace", "said"),
    [
        (True, None, "is a multi-user Kubeflow; set server.namespace to that of your profile"),
        (False, "cxr", "is a single-user Kubeflow, which runs everything in its own namespace; leave out server.namespace"),
    ],
)
def test_settings_for_the_other_kind_of_kubeflow(
    kubeflow: double.Double, tmp_path: Path, capsys: pytest.CaptureFixture[str], multi_user: bool, namespace: str | None, said: str
) -> None:
    kubeflow.multi_user = multi_user
    content = yaml.safe_load(settings.EXAMPLE.read_text())
    for given in (namespace, "cxr" if multi_user else None):
        content["server"]["namespace"] = given
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
        code = submit(kubeflow, "--settings", str(tmp_path / "settings.yaml"))
        if given == namespace:
            assert said in refused(capsys, code)
            assert not kubeflow.pipelines
    assert code == 0
