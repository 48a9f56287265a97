"""The distribution: contents of the wheel, the console script, and the lock files."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
DATA = {".css", ".html", ".js", ".md", ".yaml"}
LOCKS = ("requirements.lock", "docker/cpu.lock", "docker/gpu.lock", "benchmarks/requirements.lock")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of this checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in ("components", "pipelines", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "out", "."]
    subprocess.run(command, cwd=folder, check=True)
    (path,) = (folder / "out").iterdir()
    return path


def test_the_wheel_holds_the_two_packages_with_their_data_and_the_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"cxr_mlops-{VERSION}.dist-info"
    packages = [path for name in ("components", "pipelines") for path in (ROOT / name).rglob("*")]
    expected = {str(path.relative_to(ROOT)) for path in packages if path.suffix in {".py", *DATA}}
    assert {name for name in names if not name.startswith(information)} == expected
    assert f"{information}/licenses/LICENSE" in names


def test_the_console_script_is_the_command_line(wheel: Path) -> None:
    entry_points = zipfile.ZipFile(wheel).read(f"cxr_mlops-{VERSION}.dist-info/entry_points.txt").decode()
    assert "cxr = components.__main__:entry_point" in entry_points
    code = "import sys; sys.argv[0] = '/usr/bin/cxr'; from components.__main__ import entry_point; entry_point()"
    done = subprocess.run([sys.executable, "-c", code, "bogus"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("cxr: argument STAGE: invalid choice: 'bogus'")


def test_one_version_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == VERSION


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_versions_and_hashes_but_no_addresses(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "--hash=sha256:" in text
    assert not re.search(r"://|--(extra-)?index-url|--find-links", text)


@pytest.mark.parametrize("name", ["docker/cpu.lock", "docker/gpu.lock"])
def test_images_hold_neither_dvc_nor_test_tools(name: str) -> None:
    names = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / name).read_text(), re.MULTILINE))
    assert {"mlflow", "jinja2", "psutil"} <= names
    assert not {"dvc", "diskcache", "pycocotools", "pytest", "ruff"} & names
