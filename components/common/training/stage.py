"""A stage that trains, in the processes that torchrun has started, or in one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from components.common.runs.params import Runtime
from components.common.runs.stage_run import StageRun, stage_run
from components.common.training import loop, processes


class Prepared(Protocol):
    """Inputs that are opened and checked, possibly with the model that they make."""

    inputs: dict[str, str]  # SHA-256 by name of input
    upstream: dict[str, str]  # MLflow run id by name of input, where known


P = TypeVar("P", bound=Prepared)


@contextmanager
def training_run(stage: str, out: str, params: Any, runtime: Runtime, prepare: Callable[[], P]) -> Iterator[tuple[P, StageRun | None]]:
    """Joins the processes, prepares in each of them, and opens the run in the main process.

    Only the main process writes; the others have neither a work folder nor an MLflow run, and get None. Arguments are as for `stage_run`;
    `params` has a `device`. An error of one process in `prepare` is raised in all.
    """
    with processes.process_group(params.device), ExitStack() as stack:
        with processes.shared_errors():
            prepared = prepare()
        ranks = {"ranks": processes.world_size()}
        options: dict[str, Any] = {"runtime": runtime, "rounding": ranks, "upstream": prepared.upstream}
        yield prepared, processes.on_main(lambda: stack.enter_context(stage_run(stage, out, params, prepared.inputs, **options)))


def train(trainable: loop.Trainable, stage: str, job: StageRun | None, epochs: int, runtime: Runtime) -> list[dict[str, float]]:
    """Trains as `Trainer` does, in the work folder of a run, and logs to it; returns the history."""
    trainer = loop.Trainer(trainable, stage, job.folder if job else None, epochs, runtime)
    return trainer.run(job.log if job else None)


def attach_results(job: StageRun) -> None:
    """Uploads the files of the training as artifacts of the MLflow run."""
    for name in loop.RESULTS:
        if (job.folder / name).exists():
            job.attach(name)
