"""A stage as a step of a pipeline: its parameters, its output folder, and the small files that the UI shows.

The output folder is named by a hash of the stage, its parameters, its inputs (whose names are such hashes, too) and the commit of
the code. Hence two runs never write different content to the same folder, the output of a cached step still exists, and a step that
is retried or submitted again finds its unfinished work.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, create_model

from components.common.errors import UserError, disk_errors, temporary_folder
from components.common.formats.documents import METRICS
from components.common.runs import provenance, signals, storage
from components.common.runs.params import Runtime, Section, validate

KEY_DIGITS = 16


class Step(NamedTuple):
    """The arguments of the `run` of a stage, and access to its output."""

    params: Any  # the section of the stage
    runtime: Runtime
    out: str  # output folder

    def metrics(self) -> dict[str, float]:
        """Returns the numbers of metrics.json that are defined."""
        content = json.loads(storage.read(storage.join(self.out, METRICS)))
        return {name: value for name, value in content.items() if value is not None}

    def show(self, files: Mapping[str, str], metrics: Any = None, suffixes: tuple[str, ...] = ("",)) -> None:
        """Copies small files and numbers of the output to where the UI of the pipeline finds them.

        Args:
            files: target path by name in the output.
            metrics: Kubeflow artifact for the numbers of metrics.json, if it is to be filled.
            suffixes: endings of the names of these numbers; all by default.
        """
        for name, target in files.items():
            Path(target).write_bytes(storage.read(storage.join(self.out, name)))
        if metrics is not None:
            metrics.metadata.update({name: value for name, value in self.metrics().items() if name.endswith(suffixes)})


@contextmanager
def step(
    name: str,
    root: str,
    section: type[Section],
    params: str,
    inputs: Mapping[str, Any],
    runtime: str = "{}",
    overrides: list[str] | None = None,
    out: str | None = None,
) -> Iterator[Step]:
    """Surrounds the `run` of a stage in a pipeline.

    Args:
        name: name of the folder of its outputs.
        root: parent folder of all outputs, a local path or an s3:// URI.
        section: class of the stage's parameters.
        params: JSON of the section.
        inputs: everything else that the output depends on, as JSON values.
        runtime: JSON of the section `runtime`.
        overrides: items `section.key=value`.
        out: the output folder, if it is not to be named by a hash.
    """
    with exit_codes(name):
        key = section.__name__.lower()
        fields: dict[str, Any] = {"section": (section, Field(default=section(), alias=key)), "runtime": (Runtime, Runtime())}
        schema = create_model("StepParams", __base__=Section, **fields)
        raw = {key: json.loads(params), "runtime": json.loads(runtime)}
        found: Any = validate(schema, raw, overrides, "the parameters of the pipeline")
        depends = {"stage": name, "params": {key: found.section.values()}, "inputs": inputs, "commit": provenance.git_state()["commit"]}
        digest = storage.digest(json.dumps(depends, sort_keys=True).encode())
        yield Step(found.section, found.runtime, out or storage.join(root, name, digest[:KEY_DIGITS]))


@contextmanager
def exit_codes(name: str) -> Iterator[None]:
    """Handles signals, and turns a UserError into one line on stderr and its exit code."""
    signals.install()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        with disk_errors(Path.cwd(), temporary_folder()):
            _set_parent_run()
            yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the last line in the log of the pod
        raise SystemExit(provenance.exit_code(error)) from None


def _set_parent_run() -> None:
    """Makes the MLflow run of the stage a child of the pipeline's. The id is not a parameter, since that would defeat the cache."""
    if os.environ.get(provenance.KFP_VARIABLE):
        from components.common.runs import tracking  # takes seconds

        if parent := tracking.pipeline_run_id():
            os.environ[tracking.RUN_ID_VARIABLE] = parent
