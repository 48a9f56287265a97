"""Where an output comes from: code, packages, threads, data version, image and orchestrator."""

import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from components.common.errors import UserError
from components.common.runs import signals

ROOT = Path(__file__).parents[3]
PACKAGES = ("mlflow", "numpy", "opencv-python-headless", "pyarrow", "pydicom", "scipy", "torch", "torchvision")
"""Packages that numbers depend on."""
IMAGE_VARIABLE = "IMAGE_DIGEST"  # set by the image or the pod: the image that the container was started from
KFP_VARIABLE = "KFP_RUN_ID"  # set by the pipeline in its pods
DVC_VARIABLE = "DVC_EXP_NAME"  # set by `dvc exp run`


def exit_code(error: UserError) -> int:
    """Returns the exit code for an error: 2, or 75 in a pod of a pipeline (components/retry.py), where what is temporary is tried again."""
    return signals.EXIT_CODE if error.temporary and os.environ.get(KFP_VARIABLE) else 2


def git_state() -> dict[str, Any]:
    """Returns the commit of this code and whether it was edited since; both None outside a repository."""
    commit = os.environ.get("GIT_COMMIT") or _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no", "--", "components", "pipelines")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def package_versions() -> dict[str, str]:
    """Returns the versions of the installed packages among PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def dvc_experiment() -> str | None:
    """Returns the name under which `dvc exp show` lists the present experiment."""
    return os.environ.get(DVC_VARIABLE)


def data_md5() -> str | None:
    """Returns the MD5 of the data folder according to data.dvc."""
    path = ROOT / "data.dvc"
    if not path.is_file():
        return None
    outs = yaml.safe_load(path.read_text()).get("outs", [])
    return outs[0].get("md5") if outs else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
