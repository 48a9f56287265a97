"""JSON documents: how they are written and read, and the two that every output folder has.

`metrics.json` is flat, name -> number, null where a number is undefined. `run.json` is the run record: parameters, input digests,
git commit, package versions, times and the MLflow run id. Only run.json may differ between two runs of the same inputs.
"""

import json
from typing import Any

from components.common.errors import UserError

METRICS = "metrics.json"
RUN_RECORD = "run.json"


def to_json(content: Any) -> bytes:
    """Serialises to indented JSON with a final newline; NaN is an error."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def parse_json(content: bytes, path: str, made_by: str) -> dict[str, Any]:
    """Parses a JSON document.

    Args:
        content: the content of the file.
        path: its name, for the message.
        made_by: the stage that writes it, for the message.

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
