"""Where a run comes from and who ran it, as tags: code, data, image, pipeline run, and the runs that made its inputs."""

import os
from pathlib import Path

import yaml

from components.common.runs.job import Job, git_state

ROOT = Path(__file__).parents[3]
IMAGE_VARIABLE = "IMAGE_DIGEST"
"""Set by the image or the pod: what the container was started from."""
KFP_VARIABLE = "KFP_RUN_ID"
"""Set by the pipeline in its pods."""
DVC_VARIABLE = "DVC_EXP_NAME"
"""Set by `dvc exp run`."""


def tags(job: Job) -> dict[str, str]:
    """Tags that say where a run comes from: code, inputs, and the MLflow runs that made them."""
    git = git_state()
    found = {
        "stage": job.stage,
        "fingerprint": job.fingerprint,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"python -m components {job.stage}",
        "mlflow.source.git.commit": git["commit"] or "unknown",
        "git.dirty": str(git["dirty"]).lower(),
    }
    found |= {f"input.{name}.sha256": value for name, value in job.inputs.items()}
    found |= {f"upstream.{name}.run_id": value for name, value in job.upstream.items()}
    surroundings = {
        "data.dvc.md5": _data_md5(ROOT / "data.dvc"),
        "dvc.experiment": experiment(),
        "image.digest": os.environ.get(IMAGE_VARIABLE),
        "kfp.run_id": os.environ.get(KFP_VARIABLE),
    }
    return found | {name: value for name, value in surroundings.items() if value}


def experiment() -> str | None:
    """The name that `dvc exp show` has for the present experiment."""
    return os.environ.get(DVC_VARIABLE)


def run_name(job: Job) -> str:
    """Stage, experiment of DVC, preset and architecture, and the beginning of the fingerprint, as far as they are there."""
    kind = [str(job.params[key]) for key in ("preset", "arch") if key in job.params]
    return "-".join([job.stage, *filter(None, [experiment()]), *kind, job.fingerprint[:6]])


def _data_md5(path: Path) -> str | None:
    """MD5 of the data folder as DVC knows it."""
    if not path.is_file():
        return None
    outs = yaml.safe_load(path.read_text()).get("outs", [])
    return outs[0].get("md5") if outs else None
