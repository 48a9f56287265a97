"""A real MLflow server for tests, on a free port of the loopback interface. It can be killed and restarted on its database."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.health import wait_until_healthy

LOGIN = {"MLFLOW_TRACKING_USERNAME": "cxr", "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery"}
"""The variables of a client of a server with a login; this user may do everything."""


class Server:
    """An `mlflow server` process whose database and artifact store outlive it."""

    def __init__(self, folder: Path, options: list[str], environment: Mapping[str, str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._folder, self._options, self.environment = folder, options, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1", *self._options]
        environment = {**os.environ, **self.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_until_healthy(self._process, f"{self.address}/health", self._folder / "server.log")

    def kill(self) -> None:
        """Kills the server and its workers."""
        if self._process:
            with suppress(ProcessLookupError):  # it has already exited
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def serve(
    folder: Path, database: str = "", artifacts: str = "", environment: Mapping[str, str] | None = None, login: bool = False
) -> Iterator[Server]:
    """Runs a server, by default on SQLite and a local folder; with `login`, it asks for LOGIN, and other users may only read."""
    folder.mkdir(parents=True, exist_ok=True)
    database, artifacts = database or f"sqlite:///{folder / 'server.db'}", artifacts or str(folder / "artifacts")
    options, variables = ["--backend-store-uri", database, "--artifacts-destination", artifacts], dict(environment or {})
    if login:
        options += ["--app-name", "basic-auth"]
        (folder / "login.ini").write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'users.db'}\n")
        variables |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "login.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests"}
        variables |= dict(zip(("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD"), LOGIN.values(), strict=True))
    server = Server(folder, options, variables)
    try:
        server.start()
        yield server
    finally:
        server.kill()
