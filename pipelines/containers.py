"""The steps of a pipeline in containers on this machine, by Docker or by podman, which serves the same API.

A container sees at their paths on the machine the raw files and the starting point, read-only, and the folder of all outputs. It uses
the network of the machine, so that it can reach servers on loopback.
"""

import codecs
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import docker_task_handler

from components.common.errors import UserError
from components.common.runs import sqlite_store
from components.common.runs.provenance import IMAGE_VARIABLE, KFP_VARIABLE
from pipelines.settings import STEPS, Settings, User, memory_bytes

docker = docker_task_handler.docker  # the package of that name; mypy and ruff would take an import for the folder of this repository
DEFAULT_HOST = "unix:///var/run/docker.sock"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
PASSED_ON = (
    KFP_VARIABLE,
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "CXR_PSEUDONYM_KEY",
    "CXR_WEBHOOK_FORMAT",
    "CXR_WEBHOOK_URL",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "OMP_NUM_THREADS",
)
"""Environment variables that containers inherit from this process."""


@contextmanager
def runner(settings: Settings, inputs: tuple[str, ...], root: str) -> Iterator[local.DockerRunner]:
    """Provides the runner for local runs of kfp; those `inputs` that are local are mounted, and `root` is created if necessary.

    Raises:
        UserError: no container engine answers, or an image is missing.
    """
    _check_engine(settings)
    _make_folder(Path(root), settings.user)
    original, docker_task_handler.run_docker_container = docker_task_handler.run_docker_container, _RunContainer(_volumes(inputs, root))
    try:
        yield local.DockerRunner(
            environment=environment(settings, root),
            network_mode="host",
            shm_size=_shared_memory(settings),
            user=_identity(settings.user),
            working_dir="/tmp",  # noqa: S108 - in the container
        )
    finally:
        docker_task_handler.run_docker_container = original


class _RunContainer:
    """Replaces the function of kfp, which lets the engine remove a container as soon as it ends.

    A step that fails at once would be removed before its exit code is read, and count as done.
    """

    def __init__(self, volumes: dict[str, dict[str, str]]):
        self.volumes = volumes

    def __call__(self, client: Any, image: str, command: list[str], volumes: object, environment: dict[str, str], **options: Any) -> int:
        """Runs a step and returns its exit code; the `volumes` of kfp are part of the folder of all outputs."""
        environment = {**environment, IMAGE_VARIABLE: client.images.get(image).id}
        container = client.containers.run(image, command, detach=True, volumes=self.volumes, environment=environment, **options)
        try:
            for line in lines(container.logs(stream=True)):
                print(line)
            return int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True)


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Joins the chunks of a stream to lines; the engine may cut within a character."""
    rest = ""
    for text in codecs.iterdecode(chunks, "utf-8", "replace"):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    if rest:
        yield rest


def _check_engine(settings: Settings) -> None:
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    try:
        client = docker.from_env()
    except docker.errors.DockerException:
        raise UserError(f"{host}: no container engine answers; start Docker, or podman's service and name it in DOCKER_HOST") from None
    with closing(client):
        for name in (settings.image("cpu"), settings.image("gpu")):
            try:
                client.images.get(name)
            except docker.errors.ImageNotFound:
                problem = "has no such image; run `make images`, or name others in the settings"
                raise UserError(f"{name}: the container engine {problem}") from None
            except docker.errors.DockerException as error:
                raise UserError(f"{name}: the container engine cannot look this image up: {' '.join(str(error).split())}") from None


def _make_folder(root: Path, user: User) -> None:
    """Creates the folder of all outputs, writable for the user of the containers."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {root}: cannot be created ({error.strerror}); choose another folder") from None
    if not os.getuid():
        os.chown(root, user.uid, user.gid)


def _identity(user: User) -> str:
    """Returns the user of the containers: the present one, who then owns the outputs, but never root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{user.uid}:{user.gid}"


def _volumes(inputs: tuple[str, ...], root: str) -> dict[str, dict[str, str]]:
    """Returns the mounts, in the terms of the Docker API."""
    given = {path: {"bind": path, "mode": "ro"} for path in inputs if path and Path(path).exists()}
    return {**given, root: {"bind": root, "mode": "rw"}}


def environment(settings: Settings, root: str) -> dict[str, str]:
    """Returns the environment variables of all containers. Those of the settings take precedence.

    USER and HOME are set since the user of the containers may not exist in the image.
    """
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return {"HOME": "/tmp", "USER": "cxr", TRACKING_VARIABLE: tracking(root), **passed, **settings.environment}  # noqa: S108


def tracking(root: str) -> str:
    """Returns the address of the MLflow server, or of a database in the folder of all outputs: containers cannot see another."""
    address = os.environ.get(TRACKING_VARIABLE, "")
    return address if address.startswith("http") else sqlite_store.address(Path(root, sqlite_store.DATABASE))


def _shared_memory(settings: Settings) -> int | None:
    """Returns the largest /dev/shm that a step asks for, in bytes; None: the default of the engine."""
    sizes = [settings.step(name).shared_memory for name in STEPS]
    return max((memory_bytes(size) for size in sizes if size), default=None)
