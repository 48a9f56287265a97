"""Secrets from the environment never reach a log, an output folder, MLflow or an image."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import yaml

from tests import ROOT

SECRETS = {
    "CXR_PSEUDONYM_KEY": "pseudonym-key-4f1c77d2a9",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-9d02be6a31",
    "AWS_SESSION_TOKEN": "aws-token-77aa01fe42",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password-0c5e8a",
    "MLFLOW_TRACKING_TOKEN": "mlflow-token-5b31c9",
}
PARAMS = {"runtime": {"workers": 1}, "simulate": {"patients": 6, "size": 64}, "preprocess": {"size": 32, "parts": 1}}
SUSPICIOUS = re.compile(r"(?i)\b(ENV|ARG)\b.*(key|secret|token|password)\s*[= ]\s*\S")


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    """Runs stages that use the key, succeed and fail, with all log levels enabled."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    database = tmp_path / "mlflow.db"
    environment = {**os.environ, **SECRETS, "MLFLOW_TRACKING_URI": f"sqlite:///{database}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code = "import logging; logging.root.setLevel(0); import sys; from components.__main__ import main; sys.exit(main(sys.argv[1:]))"
    printed = ""
    for arguments, status in (
        (["simulate", "--out", "raw"], 0),
        (["preprocess", "--raw", "raw", "--out", "shards"], 0),
        (["preprocess", "--raw", "nowhere", "--out", "failed"], 2),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        printed += done.stdout + done.stderr

    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert database in written
    assert tmp_path / "shards" / "run.json" in written
    assert json.loads(written[tmp_path / "shards" / "manifest.json"])["pseudonym_key_id"]  # the key was used
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT COUNT(*) FROM params").fetchone()[0]
    for name, secret in SECRETS.items():
        assert secret not in printed, f"{name} was printed"
        assert [path for path, content in written.items() if secret.encode() in content] == [], f"{name} was written"


def test_images_and_settings_hold_none() -> None:
    """Builds set no secret and send only code and lock files to the builder; cluster settings refer to secrets by name."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert [line for line in dockerfile.splitlines() if SUSPICIOUS.search(line)] == []
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().splitlines().count("*") == 1
    assert set(allowed) == {"!components", "!pipelines", "!docker/*.lock", "!params*.yaml", "!study/params.yaml"}
