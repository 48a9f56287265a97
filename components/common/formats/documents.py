"""JSON documents, and the two that every output folder has: `metrics.json` and `run.json`.

`metrics.json` is flat, name -> number, null where a number is undefined. `run.json` is the run record, the only file that may differ
between two runs with the same inputs; an output folder without it is not complete.
"""

import hashlib
import json
import posixpath
import re
from typing import Any, TypedDict

from components.common.errors import UserError

METRICS = "metrics.json"
RUN_RECORD = "run.json"
LONGEST_KEY = 250  # characters that MLflow allows in the name of a metric, parameter or tag
LONGEST_PART = 150  # characters that a finding may take of them


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


def mlflow_key(name: str, longest: int = LONGEST_PART) -> str:
    """Returns a name that MLflow takes for a metric, parameter or tag, alone or as part of a longer one.

    MLflow refuses brackets, commas, combining accents, names that are not normal relative paths, and long ones
    (mlflow.utils.validation); some servers refuse colons. A changed name ends with a digest, so that two names stay two.
    """
    plain = re.sub(r"[^\w. /-]", "_", name)
    if posixpath.normpath(plain) != plain or plain.startswith(("/", ".")):
        plain = plain.replace("/", "_").lstrip(".")
    if name and plain == name and len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: longest - len(digest) - 1]}-{digest}"
