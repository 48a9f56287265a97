"""Builds the images as `make images` does, also on a machine that cannot reach an image registry."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PULLED_BASE = "docker.io/library/python:3.11-slim-bookworm"
OWN_BASE = "localhost/cxr-base:bookworm"
INCLUDE = "python3,python3-dev,python3-pip,python3-venv,ca-certificates"


START_SECONDS = 60


class Images(NamedTuple):
    """Names of the built images, and the output of the build."""

    cpu: str
    gpu: str
    printed: str


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=check)


@pytest.fixture(scope="session", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configures podman for a plain virtual machine: no cgroup manager, no limits above those of the machine."""
    if not shutil.which("podman"):
        pytest.fail("needs podman: apt-get install podman buildah runc debootstrap")
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text(
        "[containers]\n"
        'default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
        f'volumes = ["{CERTIFICATES}:{CERTIFICATES}:ro"]\n'
        "[engine]\n"
        'cgroup_manager = "cgroupfs"\n'
        'events_logger = "file"\n'
        'runtime = "runc"\n'
    )
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = str(settings)
    yield
    if before is None:
        del os.environ["CONTAINERS_CONF"]
    else:
        os.environ["CONTAINERS_CONF"] = before


@pytest.fixture(scope="session")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Builds both targets by the Makefile."""
    base = _base(tmp_path_factory.mktemp("base"))
    options = f"--network=host --build-arg PIP_CERT={CERTIFICATES}"
    command = ["make", "images", "BUILDER=podman", f"BASE_IMAGE={base}", "IMAGE_TAG=tested", f"BUILD_OPTIONS={options}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Images(cpu="localhost/cxr-cpu:tested", gpu="localhost/cxr-gpu:tested", printed=done.stdout)


@pytest.fixture(scope="session")
def docker_host(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Returns the address of podman serving the Docker API."""
    socket = tmp_path_factory.mktemp("service") / "podman.sock"
    command = ["podman", "system", "service", "--time=0", f"unix://{socket}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
        try:
            patience = time.monotonic() + START_SECONDS
            while not socket.exists():
                assert service.poll() is None and time.monotonic() < patience, "podman's service does not start"
                time.sleep(0.1)
            yield f"unix://{socket}"
        finally:
            service.terminate()


def _base(folder: Path) -> str:
    """Returns the base image of the Dockerfile if it can be pulled, else a Debian with the same Python."""
    if podman("pull", "--quiet", PULLED_BASE, check=False).returncode == 0:
        return PULLED_BASE
    if podman("image", "exists", OWN_BASE, check=False).returncode:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={INCLUDE}", "bookworm", folder / "rootfs"], check=True, capture_output=True
        )
        with subprocess.Popen(["tar", "-C", folder / "rootfs", "-c", "."], stdout=subprocess.PIPE) as archive:
            subprocess.run(["podman", "import", "--quiet", "-", OWN_BASE], stdin=archive.stdout, check=True, capture_output=True)
        shutil.rmtree(folder / "rootfs")
    return OWN_BASE
