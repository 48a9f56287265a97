"""Pretrains a backbone: shards to `backbone.safetensors`, with checkpoints, a history and an MLflow run."""

from components.common.errors import UserError
from components.common.formats.history import HISTORY, metrics_of, write_history
from components.common.formats.pages import FIGURES
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun
from components.common.training import checkpoints, processes
from components.common.training.stage import attach_results, train, training_run
from components.pretrain import figures, initial_weights
from components.pretrain.params import Pretrain
from components.pretrain.training import Pretraining

VIEWS = f"{FIGURES}/views.png"


def run(*, shards: list[str], out: str, params: Pretrain, runtime: Runtime, start: str | None = None) -> None:
    """Pretrains a backbone on the train split, from `start` (components/pretrain/initial_weights.py) or from random weights."""

    def prepare() -> Pretraining:
        return Pretraining(params, runtime, open_shards(shards), _weights(params, start))

    with training_run("pretrain", out, params, runtime, prepare) as (pretraining, job):
        processes.on_main(lambda: _show_views(pretraining, job))
        history = train(pretraining, "pretrain", job, params.passes, runtime)
        metrics = metrics_of(history[-1]) if history else pretraining.control_metrics()
        processes.on_main(lambda: _finish(pretraining, job, metrics))


def _weights(params: Pretrain, start: str | None) -> initial_weights.InitialWeights | None:
    if params.preset == "base" and not start:
        raise UserError("pretrain.preset: base has the weights of --start, which is missing; give it, or choose scratch")
    return initial_weights.read(start, params.arch) if start and params.preset != "scratch" else None


def _show_views(pretraining: Pretraining, job: StageRun | None) -> None:
    assert job, "the main process writes"
    figures.write_views(job.folder / VIEWS, *pretraining.examples(figures.COLUMNS))
    job.attach(VIEWS, FIGURES)


def _finish(pretraining: Pretraining, job: StageRun | None, metrics: dict[str, float]) -> None:
    assert job, "the main process writes"
    pretraining.export(job)
    if not pretraining.params.passes:
        write_history(job.folder / HISTORY, [])
    attach_results(job)
    job.publish(metrics, drop=(checkpoints.FOLDER,))
