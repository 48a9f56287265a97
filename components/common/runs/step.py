"""A stage as a step of a pipeline: its parameters, where its output goes, and the small files that the UI shows.

An output's folder is named by a hash of the stage, its parameters, its inputs (whose names are such hashes themselves) and
the commit of the code. So two runs never write different things to one place, a cached step's output is still there, and a
step that is tried again, or submitted again, finds its unfinished work.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from components.common.errors import UserError
from components.common.runs import signals, storage
from components.common.runs.job import METRICS_FILE, git_state
from components.common.runs.lineage import KFP_VARIABLE
from components.common.runs.params import Params, parse

KEY_DIGITS = 16
PARENT_VARIABLE = "MLFLOW_RUN_ID"


class Step(NamedTuple):
    """What a stage's `run` is called with, and what becomes of its output."""

    params: Params
    out: str
    """Folder of the output."""

    def metrics(self, *endings: str) -> dict[str, float]:
        """The numbers of metrics.json that are known; with `endings`, those whose names end so."""
        content = json.loads(storage.read(storage.join(self.out, METRICS_FILE)))
        return {name: value for name, value in content.items() if value is not None and name.endswith(endings or ("",))}

    def show(self, name: str, target: str) -> None:
        """Copies a small file of the output to where the pipeline's UI finds it."""
        Path(target).write_bytes(storage.read(storage.join(self.out, name)))


@contextmanager
def step(stage: str, root: str, sections: dict[str, str], inputs: dict[str, Any], overrides: list[str] | None = None) -> Iterator[Step]:
    """The frame around a stage's `run` in a pipeline.

    Args:
        stage: its name, which becomes the folder's.
        root: below which all outputs lie, a local path or an s3:// URI.
        sections: JSON by name of the section.
        inputs: whatever else decides what comes out, as values that JSON can hold.
        overrides: `section.key=value`.
    """
    with complain(stage):
        params = parse(sections, overrides)
        yield Step(params, storage.join(root, stage, _key(stage, params, sections, inputs)))


@contextmanager
def complain(name: str) -> Iterator[None]:
    """Within it, signals are handled, and a mistake of the user's ends the process with one line and exit code 2."""
    signals.install()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        _name_parent()
        yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the last line of the pod's log
        raise SystemExit(2) from None


def _name_parent() -> None:
    """Lets the stage's MLflow run appear below the pipeline's. Its id is no parameter, which would spoil the cache."""
    if os.environ.get(KFP_VARIABLE):
        from pipelines.pipeline_run import parent_run

        if parent := parent_run():
            os.environ[PARENT_VARIABLE] = parent


def _key(stage: str, params: Params, sections: dict[str, str], inputs: dict[str, Any]) -> str:
    defining = {name: getattr(params, "register_" if name == "register" else name).defining() for name in sections}
    depends = {"stage": stage, "params": defining, "inputs": inputs, "commit": git_state()["commit"]}
    return storage.digest(json.dumps(depends, sort_keys=True).encode())[:KEY_DIGITS]
