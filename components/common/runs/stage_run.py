"""A stage's run as one context manager: fingerprint, lock, work folder, MLflow run, and the output that appears whole."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.common.formats.documents import LONGEST_KEY, mlflow_key
from components.common.runs import signals
from components.common.runs.params import Runtime, Section
from components.common.runs.work import RUN_ID_FILE, Work, open_work

if TYPE_CHECKING:  # importing MLflow takes seconds
    from components.common.runs.tracking import Tracker


@dataclass
class StageRun(Work):
    """One run of one stage."""

    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _tracker: "Tracker | None" = field(default=None, repr=False)

    @property
    def tracker(self) -> "Tracker":
        """The MLflow run. `connect` must have been called."""
        assert self._tracker, "not connected to MLflow"
        return self._tracker

    def connect(self) -> None:
        """Begins the MLflow run, or continues that of the stopped run which this one resumes.

        Raises:
            UserError: the tracking server cannot be reached.
        """
        with signals.deferred():  # pydantic, which MLflow imports, would turn the exception of a signal into an error of its own
            from components.common.runs import tracking
        signals.check()
        self._tracker = self._stack.enter_context(tracking.begin(self))

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step (an epoch) to MLflow; NaN is left out."""
        self.tracker.log(metrics, step)

    def attach(self, name: str, folder: str | None = None) -> None:
        """Uploads a file or a folder of the work folder as an artifact of the MLflow run, into `folder` there."""
        self.tracker.attach(self.folder / name, folder)

    def publish(self, metrics: Mapping[str, float], drop: tuple[str, ...] = ()) -> None:
        """Logs the metrics, writes metrics.json and run.json, and turns the work in progress into the output.

        Args:
            metrics: flat, name -> number; NaN becomes null. Names that MLflow refuses are changed.
            drop: names in the work folder that are not part of the output, such as checkpoints.
        """
        metrics = {mlflow_key(name, LONGEST_KEY): value for name, value in metrics.items()}
        if self._tracker:
            self._tracker.log(metrics)
        self.finish(metrics, self._tracker.run_id if self._tracker else None, drop=(*drop, RUN_ID_FILE))


@contextmanager
def stage_run(
    stage: str,
    out: str,
    params: Section,
    inputs: Mapping[str, str],
    *,
    runtime: Runtime | None = None,
    depends: Mapping[str, Any] | None = None,
    rounding: Mapping[str, Any] | None = None,
    upstream: Mapping[str, str] | None = None,
    connect: bool = True,
) -> Iterator[StageRun]:
    """Opens a run. In the block, work in `folder`, then call `publish`; without that, the next run with the same fingerprint resumes.

    Args:
        stage: its name.
        out: a local path or an s3:// URI. An existing folder must be an earlier output of the stage, or empty.
        params: the section of the stage.
        inputs: SHA-256 by name of input.
        runtime: the section `runtime`, recorded but not part of the fingerprint.
        depends: anything else that the output depends on.
        rounding: what the output depends on in its last bits only, besides the number of threads; a stopped run resumes with other values.
        upstream: MLflow run id by name of input.
        connect: whether to begin the MLflow run at once; False: the caller calls `connect`, or does without.

    Raises:
        UserError: `out` cannot be used, another process is working on it, or the tracking server cannot be reached.
    """
    with open_work(StageRun, stage, out, params, inputs, runtime, depends, rounding, upstream) as run, run._stack:
        if connect:
            run.connect()
        yield run
