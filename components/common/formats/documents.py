"""JSON documents, and the two that every output folder has: `metrics.json` and `run.json`.

`metrics.json` is flat, name -> number, null where a number is undefined. `run.json` is the run record, the only file that may differ
between two runs with the same inputs; an output folder without it is not complete.
"""

import json
from typing import Any, TypedDict

from components.common.errors import UserError

METRICS = "metrics.json"
RUN_RECORD = "run.json"


class RunRecord(TypedDict):
    """The content of a run.json."""

    stage: str
    fingerprint: str  # hash of everything that the output depends on
    params: dict[str, Any]  # the section of the stage
    runtime: dict[str, Any]  # the section `runtime`; empty for stages that do not read it
    inputs: dict[str, str]  # SHA-256 by name of input
    git: dict[str, Any]  # `commit`, and whether the code is `dirty`; null outside a repository
    packages: dict[str, str]  # version by name of package
    python: str
    threads: int
    started: str  # time in UTC
    seconds: float
    resumed: bool
    mlflow_run_id: str | None
    upstream_mlflow_run_ids: dict[str, str]  # MLflow run id by name of input
    files: list[str]  # relative paths of the other files of the output


def to_json(content: Any) -> bytes:
    """Serialises to indented JSON with a final newline.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def parse_json(content: bytes, path: str, made_by: str) -> dict[str, Any]:
    """Parses a JSON document; its `path` and the stage that it is `made_by` are for the message.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; run {made_by} again")
    return found


def metrics_to_json(metrics: dict[str, float]) -> bytes:
    """Serialises metrics; NaN becomes null."""
    return to_json({name: None if value != value else value for name, value in metrics.items()})
