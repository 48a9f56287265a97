"""JSON documents, and the two that every output folder has: `metrics.json` and `run.json`.

`metrics.json` is flat, name -> number, null where a number is undefined. `run.json` is the run record, the only file that may differ
between two runs with the same inputs; an output folder without it is not complete.
"""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Collection
from types import NoneType, UnionType
from typing import Any, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

from components.common.errors import UserError

T = TypeVar("T")

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
    except (ValueError, RecursionError):  # nested too deeply
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; run {made_by} again")
    return found


def check_document(content: dict[str, Any], kind: type[T], path: str, made_by: str, required: Collection[str] | None = None) -> T:
    """Checks the types of the entries of a document against a TypedDict; further entries are allowed.

    Args:
        content: the parsed document.
        kind: the TypedDict.
        path: name of the document, for the message.
        made_by: the stage that wrote it, for the message.
        required: names that must be there, for documents whose early versions lack some; None: all.

    Raises:
        UserError: an entry is missing or of another type.
    """
    hints = get_type_hints(kind)
    for name in hints if required is None else required:
        if name not in content:
            raise UserError(f"{path}: lacks {name}; run {made_by} again")
    mistakes = (_mistake(content[name], hint, name) for name, hint in hints.items() if name in content)
    if mistake := next(filter(None, mistakes), None):
        raise UserError(f"{path}: {mistake}; run {made_by} again")
    return cast(T, content)


def check_metrics(content: dict[str, Any], path: str, made_by: str) -> dict[str, float | None]:
    """Checks that a metrics.json is flat, name -> number or null; raises UserError."""
    for name, value in content.items():
        if mistake := _mistake(value, float | None, name):
            raise UserError(f"{path}: {mistake}; run {made_by} again")
    return content


def _mistake(value: Any, kind: Any, name: str) -> str | None:
    """Returns how a JSON value differs from a type, such as `parts.0.rows is not a whole number`; None if it does not."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return None
    if origin is UnionType:
        mistakes = [_mistake(value, each, name) for each in arguments]
        return None if None in mistakes else mistakes[0]
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        items = [(f"{name}.{key}", value.get(key), hint) for key, hint in get_type_hints(kind).items()]
    else:
        if not _fits(value, origin):
            return f"{name} is not {_TYPES[origin]}"
        keyed = value.items() if origin is dict else enumerate(value) if origin is list else ()
        items = [(f"{name}.{key}", item, arguments[-1]) for key, item in keyed if arguments]
    return next(filter(None, (_mistake(item, hint, place) for place, item, hint in items)), None)


_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


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
