"""A pipeline's steps in containers on this machine: the images of the settings, by Docker or by podman's service for its API.

A container sees two of the machine's folders, at the same paths: the raw files, which it cannot change, and the folder of all outputs.
It has the machine's network, so that servers on loopback are there for it as for any other process.
"""

import codecs
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from kfp import local
from kfp.local import docker_task_handler

from components.common.errors import UserError
from components.common.runs.provenance import IMAGE_VARIABLE, KFP_VARIABLE
from pipelines.settings import Settings, StepName, User, memory_bytes

docker = docker_task_handler.docker
"""The package; to mypy and ruff its name is the folder of this repository."""
DEFAULT_HOST = "unix:///var/run/docker.sock"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
"""In the folder of all outputs: MLflow's, where no server is named."""
PASSED_ON = (
    KFP_VARIABLE,
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "CXR_PSEUDONYM_KEY",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "OMP_NUM_THREADS",
)
"""Variables that a container gets from this process; all others belong to the machine."""


@contextmanager
def runner(settings: Settings, raw: str, root: str) -> Iterator[local.DockerRunner]:
    """What kfp's local runs start containers by, within the context.

    Args:
        settings: images, user, environment and shared memory count.
        raw: folder of the raw files, or an s3:// URI; neither where the pipeline simulates them.
        root: folder of all outputs, made if need be.

    Raises:
        UserError: no engine answers, or it does not have an image.
    """
    _check_engine(settings)
    _make_folder(Path(root), settings.user)
    kfps, docker_task_handler.run_docker_container = docker_task_handler.run_docker_container, _Start(_volumes(raw, root))
    try:
        yield local.DockerRunner(
            environment=environment(settings, root),
            network_mode="host",
            shm_size=_shared_memory(settings),
            user=_identity(settings.user),
            working_dir="/tmp",  # noqa: S108 - the container's own
        )
    finally:
        docker_task_handler.run_docker_container = kfps


class _Start:
    """Takes the place of kfp's own function, which tells the engine to remove a container when it ends.

    A step that fails at once is then gone before its exit code is read, and counts as done.
    """

    def __init__(self, volumes: dict[str, dict[str, str]]):
        self.volumes = volumes

    def __call__(self, client: Any, image: str, command: list[str], volumes: object, environment: dict[str, str], **options: Any) -> int:
        """Runs a step to its end and returns its exit code; `volumes` are kfp's, below our own."""
        environment = {**environment, IMAGE_VARIABLE: client.images.get(image).id}
        container = client.containers.run(image, command, detach=True, volumes=self.volumes, environment=environment, **options)
        try:
            for line in lines(container.logs(stream=True)):
                print(line)
            return int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True)


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream that is cut anywhere, within characters too."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from lines
    if rest:
        yield rest


def _check_engine(settings: Settings) -> None:
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    try:
        client = docker.from_env()
    except docker.errors.DockerException:
        raise UserError(f"{host}: no container engine answers; start Docker, or podman's service and name it in DOCKER_HOST") from None
    try:
        for name in (settings.image("cpu"), settings.image("gpu")):
            _check_image(client, name)
    finally:
        client.close()


def _check_image(client: Any, name: str) -> None:
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        raise UserError(f"{name}: the container engine has no such image; run `make images`, or name others in the settings") from None
    except docker.errors.DockerException as error:
        raise UserError(f"{name}: the container engine cannot look for this image: {' '.join(str(error).split())}") from None


def _make_folder(root: Path, user: User) -> None:
    """The folder of all outputs, which whoever the containers run as can write to."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {root}: cannot be made ({error.strerror}); choose another") from None
    if not os.getuid():
        os.chown(root, user.uid, user.gid)


def _identity(user: User) -> str:
    """Containers run as who starts them, who then owns the outputs; never as root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{user.uid}:{user.gid}"


def _volumes(raw: str, root: str) -> dict[str, dict[str, str]]:
    """What is mounted where, as Docker's API takes it."""
    seen = {root: {"bind": root, "mode": "rw"}}
    return {raw: {"bind": raw, "mode": "ro"}, **seen} if Path(raw).is_dir() else seen


def environment(settings: Settings, root: str) -> dict[str, str]:
    """Variables of every container. The settings win; a user that the image does not know needs a name and a home."""
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return {"HOME": "/tmp", "USER": "cxr", TRACKING_VARIABLE: tracking(root), **passed, **settings.environment}  # noqa: S108


def tracking(root: str) -> str:
    """MLflow's server, or a database in the folder of all outputs: containers see no other."""
    address = os.environ.get(TRACKING_VARIABLE, "")
    return address if address.startswith("http") else f"sqlite:///{root}/{DATABASE}"


def _shared_memory(settings: Settings) -> int | None:
    """The largest /dev/shm that a step asks for, in bytes; None: the engine's default."""
    sizes = [settings.step(name).shared_memory for name in get_args(StepName)]
    return max((memory_bytes(size) for size in sizes if size), default=None)
