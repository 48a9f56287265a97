"""Tags and names of MLflow runs: the code, data, image and pipeline run they come from, and the runs that made their inputs.

A registered version has the same tags, and those of its training below `train.` (components/register/candidate.py).
"""

import os
from collections.abc import Mapping

from components.common.runs import provenance
from components.common.runs.work import Work

ALARM = "alarm"  # tag of the runs of monitor, yes or no, and of the run of a pipeline with an alarm
HEADLINE = "headline"  # tag of a run: its result in a few words, for messages; names no file, image or patient
_INPUTS = ("input.", "upstream.", "train.inputs.", "train.upstream_mlflow_run_ids.")


def tags(work: Work) -> dict[str, str]:
    """Returns the tags of a run."""
    git = provenance.git_state()
    found = {
        "stage": work.stage,
        "fingerprint": work.fingerprint,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"python -m components {work.stage}",
        "mlflow.source.git.commit": git["commit"] or "unknown",
        "git.dirty": str(git["dirty"]).lower(),
    }
    found |= {f"input.{name}.sha256": value for name, value in work.inputs.items()}
    found |= {f"upstream.{name}.run_id": value for name, value in work.upstream.items()}
    optional = {
        "data.dvc.md5": provenance.data_md5(),
        "dvc.experiment": provenance.dvc_experiment(),
        "image.digest": os.environ.get(provenance.IMAGE_VARIABLE, "").split("/")[-1].split("@")[-1],  # without the registry
        "kfp.run_id": os.environ.get(provenance.KFP_VARIABLE),
    }
    return found | {name: value for name, value in optional.items() if value}


def needs(tags: Mapping[str, str]) -> set[str]:
    """Returns what the tags of a run or a registered version name as its inputs: SHA-256 and MLflow run ids."""
    return {value for name, value in tags.items() if name.startswith(_INPUTS)}


def run_name(work: Work) -> str:
    """Joins stage, DVC experiment, preset, architecture and the beginning of the fingerprint, as far as they exist."""
    kind = [str(work.params[key]) for key in ("preset", "arch") if key in work.params]
    return "-".join([work.stage, *filter(None, [provenance.dvc_experiment()]), *kind, work.fingerprint[:6]])
