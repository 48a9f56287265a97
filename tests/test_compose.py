"""The tracking server of docker/compose.yaml: its commands and environment, run by real programs without containers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import mlflow
import pytest
import requests
import yaml

from tests import ROOT, postgres, seaweed
from tests.mlflow_server import Server

pytestmark = pytest.mark.services

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
EXAMPLE = (ROOT / "docker" / "compose.env.example").read_text()
FILLED_IN = {name: f"a-value-filled-in-{index}" for index, name in enumerate(re.findall(r"(?m)^([A-Z_]+)=", EXAMPLE))}


def environment_of(service: str) -> dict[str, str]:
    """Returns the environment of a service, with every variable of the example filled in."""
    return {
        name: re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda found: FILLED_IN[found[1]], value)
        for name, value in COMPOSE[service]["environment"].items()
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts MLflow, PostgreSQL and SeaweedFS as compose does, except for hosts, ports and folders."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "s3").mkdir()
    options = [option for option in COMPOSE["s3"]["command"] if not option.startswith(("server", "-dir=", "-s3.port="))]
    keys = {name: value for name, value in environment_of("s3").items() if name != "AWS_ENDPOINT_URL"}
    with postgres.serve("mlflow") as database, seaweed.run(folder / "s3", options, keys) as store:
        bucket = [sys.executable, *COMPOSE["bucket"]["command"][1:]]
        subprocess.run(bucket, env={**os.environ, **environment_of("bucket"), **store}, check=True)

        users = (ROOT / "docker" / "mlflow-auth.ini").read_text().replace("/work/users.db", str(folder / "users.db"))
        (folder / "auth.ini").write_text(users)
        password = FILLED_IN["POSTGRES_PASSWORD"]
        environment = environment_of("mlflow") | store
        assert environment["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg2://mlflow:{password}@postgres:5432/mlflow"
        environment |= {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
        command = [option for option in COMPOSE["mlflow"]["command"][2:] if not option.startswith(("--host", "--port"))]
        server = Server(folder, command, environment)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def test_the_example_has_every_variable() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker" / "compose.yaml").read_text()))
    assert asked == set(FILLED_IN)


@pytest.mark.parametrize("credentials", [None, ("admin", "password1234"), ("stranger", FILLED_IN["MLFLOW_AUTH_ADMIN_PASSWORD"])])
def test_reading_needs_an_account(server: Server, credentials: tuple[str, str] | None) -> None:
    """Requests without a password or with MLflow's default password are refused."""
    answer = requests.post(f"{server.address}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, auth=credentials, timeout=60)
    assert answer.status_code == 401


def test_a_run_is_in_both_stores(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", FILLED_IN["MLFLOW_AUTH_ADMIN_PASSWORD"])
    client = mlflow.MlflowClient(server.address)
    run = client.create_run(client.create_experiment("pretrain"))
    client.log_metric(run.info.run_id, "loss", 1.5)
    note = tmp_path_factory.mktemp("note") / "note.txt"
    note.write_text("kept")
    client.log_artifact(run.info.run_id, str(note))

    server.kill()
    server.start()
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.5}
    store = server.environment
    bucket = boto3.client(
        "s3",
        endpoint_url=store["AWS_ENDPOINT_URL"],
        aws_access_key_id=FILLED_IN["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=FILLED_IN["AWS_SECRET_ACCESS_KEY"],
        region_name=store["AWS_DEFAULT_REGION"],
    )
    [content] = [entry for entry in bucket.list_objects_v2(Bucket="mlflow")["Contents"] if entry["Key"].endswith("note.txt")]
    assert bucket.get_object(Bucket="mlflow", Key=content["Key"])["Body"].read() == b"kept"
