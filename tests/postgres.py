"""A real PostgreSQL server (Debian's package) for tests, on a free port of the loopback interface."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

USER = "postgres"
"""User of the server if the tests run as root, which PostgreSQL refuses."""


@contextmanager
def serve(database: str) -> Iterator[str]:
    """Runs the server with an empty database; yields its URL for SQLAlchemy."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    root = os.getuid() == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # other users cannot read pytest's folders, to which TMPDIR points
    try:
        if root:
            os.chown(folder, pwd.getpwnam(USER).pw_uid, -1)
        user = {"user": USER} if root else {}
        subprocess.run(
            [programs[-1] / "initdb", "--auth=trust", "--username=mlflow", "--no-sync", f"--pgdata={folder / 'data'}"],
            check=True, capture_output=True, cwd=folder, **user,
        )  # fmt: skip
        command = [
            programs[-1] / "postgres",
            "-D",
            folder / "data",
            "-p",
            str(port),
            "-h",
            "127.0.0.1",
            "-c",
            f"unix_socket_directories={folder}",
        ]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user) as server:
            try:
                _create(database, port, server, folder / "log")
                yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/{database}"
            finally:
                server.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create(database: str, port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Creates the database as soon as the server answers."""
    for _ in range(150):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            connection = psycopg2.connect(host="127.0.0.1", port=port, user="mlflow", dbname="postgres")
        except psycopg2.OperationalError:
            time.sleep(0.2)
            continue
        connection.autocommit = True
        connection.cursor().execute(f'CREATE DATABASE "{database}"')
        connection.close()
        return
    raise AssertionError(log.read_text()[-2000:])
