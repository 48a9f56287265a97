"""Trains a detector: shards and a backbone to `model.safetensors`, `predictions.parquet` and `figures/`.

The best epoch is the one with the highest mAP@50 on the validation split; the test split is read once, at the end.
"""

import pyarrow as pa

from components.common.formats.history import metrics_of
from components.common.formats.pages import FIGURES
from components.common.formats.predictions import META, common_columns, write_predictions
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun
from components.common.training import checkpoints, processes
from components.common.training.inference import write_model
from components.common.training.reader import Reader, require_splits
from components.common.training.stage import attach_results, train, training_run
from components.detect import annotations, figures, network
from components.detect.params import Detect
from components.detect.predictions import box_columns, compared, operating_threshold
from components.detect.training import Detection


def run(*, shards: list[str], out: str, params: Detect, runtime: Runtime, backbone: str | None = None) -> None:
    """Trains a detector of the classes that have boxes, on a backbone of pretrain or from random weights."""

    def prepare() -> Detection:
        opened = open_shards(shards)
        require_splits(opened)
        return Detection(params, opened, backbone)

    with training_run("detect", out, params, runtime, prepare) as (detection, job):
        history = train(detection, "detect", job, params.epochs, runtime)
        finish(detection, job, history)


def finish(detection: Detection, job: StageRun | None, history: list[dict[str, float]]) -> None:
    """Detects in val and test by the best epoch's model, in all processes; the main one writes them, the model and some figures."""
    weights, classes = detection.best["weights"], detection.classes
    detection.network.model.load_state_dict(weights)
    test = Reader(detection.shards, "test", (*annotations.COLUMNS, *META))
    readers = {"val": detection.val, "test": test}
    known = {"val": detection.val_known, "test": detection.annotate(test)}
    found = {split: detection.predict(reader, known[split]) for split, reader in readers.items()}
    threshold = operating_threshold(compared(found["val"], known["val"]), len(classes))
    description = {
        **{name: getattr(detection.params, name) for name in network.SETTINGS},
        "classes": classes,
        "size": detection.shards.size,
        "bits": detection.shards.bits,
        "normalisation": {"mean": detection.mean, "std": detection.std},
        "threshold": threshold,  # detections below it are not drawn
        "best_epoch": detection.best["epoch"],
    }

    def write() -> None:
        assert job, "the main process writes"
        write_model(job, weights, detection.shards, description)
        common = {split: common_columns(reader.table, split, "detect") for split, reader in readers.items()}
        tables = [pa.table({**common[split], **box_columns(found[split], known[split], classes)}) for split in readers]
        write_predictions(job.folder, tables)
        whole = Reader(detection.shards, "test", rank=0, ranks=1)
        figures.draw(job.folder / FIGURES, whole, found["test"], known["test"], classes, threshold)
        best = metrics_of(history[detection.best["epoch"] - 1])
        attach_results(job)
        job.attach(FIGURES)
        job.publish({"best_epoch": detection.best["epoch"], **detection.counts(), **best}, drop=(checkpoints.FOLDER,))

    processes.on_main(write)
