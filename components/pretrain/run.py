"""Pretrains a backbone: shards to `backbone.safetensors`, with checkpoints, a history and an MLflow run."""

from contextlib import ExitStack

from components.common.errors import UserError
from components.common.formats.history import HISTORY, metrics_of, write_history
from components.common.formats.pages import FIGURES
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.training import checkpoints, loop, processes
from components.pretrain import figures, initial_weights
from components.pretrain.params import Pretrain
from components.pretrain.training import Pretraining

VIEWS = f"{FIGURES}/views.png"


def run(*, shards: list[str], out: str, params: Pretrain, runtime: Runtime, start: str | None = None) -> None:
    """Pretrains a backbone on the train split, from `start` (components/pretrain/initial_weights.py) or from random weights."""
    with processes.process_group(params.device), ExitStack() as stack:
        with processes.shared_errors():
            pretraining = Pretraining(params, runtime, open_shards(shards), _weights(params, start))
        # Only the main process writes; the others have neither a work folder nor an MLflow run.
        job = processes.on_main(lambda: _open(pretraining, out, stack))
        pretraining.start()
        trainer = loop.Trainer(pretraining, "pretrain", job.folder if job else None, params.passes, runtime)
        history = trainer.run(job.log if job else None)
        processes.on_main(lambda: _finish(pretraining, job, history))


def _weights(params: Pretrain, start: str | None) -> initial_weights.InitialWeights | None:
    if params.preset == "base" and not start:
        raise UserError("pretrain.preset: base has the weights of --start, which is missing; give it, or choose scratch")
    return initial_weights.read(start, params.arch) if start and params.preset != "scratch" else None


def _open(pretraining: Pretraining, out: str, stack: ExitStack) -> StageRun:
    runtime, inputs, upstream = pretraining.runtime, pretraining.inputs, pretraining.upstream
    ranks = {"ranks": processes.world_size()}
    job = stack.enter_context(stage_run("pretrain", out, pretraining.params, inputs, runtime=runtime, rounding=ranks, upstream=upstream))
    figures.write_views(job.folder / VIEWS, *pretraining.examples(figures.COLUMNS))
    job.attach(VIEWS, FIGURES)
    return job


def _finish(pretraining: Pretraining, job: StageRun | None, history: list[dict[str, float]]) -> None:
    assert job, "the main process writes"
    pretraining.export(job)
    if not history:
        write_history(job.folder / HISTORY, history)
    job.attach(HISTORY)
    job.publish(metrics_of(history[-1]) if history else {}, drop=(checkpoints.FOLDER,))
