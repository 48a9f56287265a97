"""What a user reads when MLflow refuses a login or a request."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server import get_app_client

from components.common.errors import UserError
from components.common.runs import tracking
from components.common.runs.delivery import shown
from components.common.runs.mlflow_errors import explain, is_temporary
from components.common.runs.provenance import KFP_VARIABLE
from components.common.runs.registered_models import download
from components.register.registry import Registry
from tests import ROOT, mlflow_server
from tests.mlflow_server import LOGIN, Server

USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
SERVER = "MLflow at http://server"


def denied(path: str) -> MlflowException:
    """The exception of MLflow's client for a page of 403 without JSON, which is what mlflow.server.auth answers."""
    return MlflowException(
        f"API request to endpoint {path} failed with error code 403 != 200. Response body: 'Permission denied'", PERMISSION_DENIED
    )


def artifact(status: int, method: str) -> requests.HTTPError:
    """The exception for an artifact that the server hands on."""
    response = requests.Response()
    response.status_code = status
    response.request = requests.Request(method, "http://server/api/2.0/mlflow-artifacts/artifacts/1/f").prepare()
    return requests.HTTPError("refused", response=response)


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # ~/.mlflow/credentials
    for variable in (USER, PASSWORD, TOKEN):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, f"asks for a user name and a password; set {USER} and {PASSWORD} ("),
        ({USER: "ann"}, f"asks for a user name and a password; set {PASSWORD} ("),
        ({USER: "ann", PASSWORD: "p"}, f"does not know the user ann, or the password is wrong; correct {USER} and {PASSWORD} ("),
        ({TOKEN: "t"}, f"refuses the token; correct {TOKEN} ("),
    ],
)
@pytest.mark.parametrize("error", [RestException({"error_code": "UNAUTHENTICATED"}), artifact(401, "GET")])
def test_a_refused_login(error: Exception, given: dict[str, str], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    message = explain(SERVER, error)
    assert message.startswith(f"{SERVER} answers 401: it {part}")
    assert message.endswith("(in a pod: in the secret that `secrets.mlflow` of the settings names)")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "permission"),
    [
        (denied("/api/2.0/mlflow/runs/create"), "EDIT on the experiment for /api/2.0/mlflow/runs/create"),
        (denied("/api/2.0/mlflow/logged-models"), "EDIT on the experiment"),
        (denied("/api/2.0/mlflow/logged-models/m-1"), "MANAGE on the experiment"),
        (denied("/api/2.0/mlflow/experiments/get-by-name"), "READ on the experiment"),
        (denied("/api/2.0/mlflow/runs/search"), "READ on the experiment"),
        (denied("/api/2.0/mlflow/model-versions/create"), "EDIT on the registered model"),
        (denied("/api/2.0/mlflow/model-versions/set-tag"), "EDIT on the registered model"),
        (denied("/api/2.0/mlflow/registered-models/alias"), "MANAGE on the registered model"),
        (artifact(403, "PUT"), "EDIT on the experiment"),
        (artifact(403, "GET"), "READ on the experiment"),
    ],
)
def test_a_missing_permission(error: Exception, permission: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER, "ann")
    message = explain(SERVER, error)
    assert message.startswith(f"{SERVER} answers 403: the user ann needs the permission {permission}")
    assert message.endswith("let an administrator of MLflow grant it")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://ann:pass@host:5000/x", "http://ann:***@host:5000/x"),
        ("postgresql+psycopg2://u:p%40@db:5432/mlflow", "postgresql+psycopg2://u:***@db:5432/mlflow"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////a:b/c@d.db", "sqlite:////a:b/c@d.db"),
    ],
)
def test_no_password_is_shown(address: str, expected: str) -> None:
    assert shown(address) == expected


def test_no_password_is_shown_where_mlflow_quotes_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"ann:\*\*\*@127\.0\.0\.1.* to http://ann:\*\*\*@127\.0\.0\.1") as raised:
        tracking.client()
    assert "secret" not in str(raised.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mlflow_server.serve(tmp_path_factory.mktemp("login"), login=True) as running:
        yield running


def log_in(monkeypatch: pytest.MonkeyPatch, server: Server, user: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv(USER, user)
    monkeypatch.setenv(PASSWORD, password)


@pytest.mark.services
def test_a_step_without_or_with_a_wrong_login(server: Server) -> None:
    code = "from components.common.runs.step import exit_codes\nwith exit_codes('simulate'): pass"
    for login, part in (({}, f"set {USER} and {PASSWORD}"), ({**LOGIN, PASSWORD: "wrong"}, f"correct {USER} and {PASSWORD}")):
        environment = {**os.environ, KFP_VARIABLE: "run", "MLFLOW_TRACKING_URI": server.address, **login}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"simulate: MLflow at {server.address} answers 401: ")
        assert part in line


@pytest.mark.services
def test_a_user_who_may_only_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, server, *LOGIN.values())
    administrator = MlflowClient(server.address)
    simulated = administrator.create_experiment("simulate")
    administrator.create_registered_model("cxr-classify")
    get_app_client("basic-auth", server.address).create_user("ann", "another-long-password")

    log_in(monkeypatch, server, "ann", "another-long-password")
    client = MlflowClient(server.address)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: client.create_run(simulated), "EDIT on the experiment for /api/2.0/mlflow/runs/create"),
        (lambda: Registry("cxr-classify")._note("1", "a", "b"), "EDIT on the registered model for /api/2.0/mlflow/model-versions/set-tag"),
        (lambda: client.delete_registered_model_alias("cxr-classify", "champion"), "MANAGE on the registered model"),
    ]
    for attempt, permission in attempts:
        with pytest.raises(UserError, match=f"answers 403: the user ann needs the permission {permission}"), tracking.reachable():
            attempt()

    log_in(monkeypatch, server, "ann", "wrong")
    with pytest.raises(UserError, match="answers 401: it does not know the user ann"):
        download("models:/cxr-classify/1", tmp_path)


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        (RestException({"error_code": "INTERNAL_ERROR", "message": "the database is locked"}), True),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE"}), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST"}), False),
        (MlflowException("API request to http://server/api failed with exception HTTPConnectionPool: Max retries exceeded"), True),
        (MlflowException("the argument is wrong"), False),
        (denied("/api/2.0/mlflow/runs/create"), False),
        (artifact(503, "PUT"), True),
        (artifact(403, "PUT"), False),
        (requests.ConnectionError("refused"), True),
        (PermissionError(13, "Permission denied"), False),
        (ImportError("no driver"), False),
    ],
)
def test_what_another_attempt_may_mend(error: Exception, temporary: bool) -> None:
    assert is_temporary(error) == temporary


def test_a_server_that_is_down_may_answer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="start it or set MLFLOW_TRACKING_URI") as error:
        tracking.client()
    assert error.value.temporary
