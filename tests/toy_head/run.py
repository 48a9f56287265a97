"""Fits the linear layer on the features of the frozen backbone."""

import pyarrow as pa
import torch
from components.toy.params import Toy
from components.toy.serving import Brightness

from components.common.formats.history import HISTORY, write_history
from components.common.formats.predictions import META, SPLITS, common_columns, write_predictions
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import stage_run
from components.common.training import backbones, checkpoints, devices
from components.common.training.inference import write_model
from components.common.training.reader import Reader


def run(*, shards: list[str], out: str, params: Toy, runtime: Runtime, backbone: str | None = None) -> None:
    devices.set_up("cpu", params.seed)
    opened = open_shards(shards)
    resnet, mean, std, inputs, upstream = backbones.start(backbone, params.arch, opened)
    with stage_run("toy", out, params, inputs, runtime=runtime, upstream=upstream) as job:
        normalisation = {"mean": mean, "std": std}
        about = {"arch": params.arch, "size": opened.size, "bits": opened.bits, "normalisation": normalisation}
        network = fit(Brightness(about, resnet).eval(), Reader(opened, "train"))
        write_model(job, checkpoints.copy_weights(network.resnet), opened, about)
        write_predictions(job.folder, [predict(network, Reader(opened, split, META), split) for split in SPLITS])
        write_history(job.folder / HISTORY, [])  # there are no epochs
        job.publish({})


@torch.no_grad()
def fit(network: Brightness, reader: Reader) -> Brightness:
    """Solves the least squares problem of smallest norm; the last coefficient is the bias."""
    squares = torch.cat([devices.to_unit(batch.images, torch.device("cpu")) for batch in reader.in_order(32)])
    inputs, targets = torch.cat([network.features(squares), torch.ones(len(squares), 1)], 1), squares.mean((1, 2, 3))
    solution = torch.linalg.lstsq(inputs.double(), targets.double(), driver="gelsd").solution.float()
    network.resnet.fc.weight[0], network.resnet.fc.bias[0] = solution[:-1], solution[-1]
    return network


def predict(network: Brightness, reader: Reader, split: str) -> pa.Table:
    images = [image for batch in reader.in_order(32) for image in batch.images]
    return pa.table({**common_columns(reader.table, split, "toy"), **network.compare(images)})
