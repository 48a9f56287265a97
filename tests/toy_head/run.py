"""Fits the linear layer on the features of the frozen backbone."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from components.toy.params import Toy
from components.toy.serving import Brightness
from safetensors.torch import save_file

from components.common.formats.history import HISTORY, write_history
from components.common.formats.model import DESCRIPTION, WEIGHTS, begin_description
from components.common.formats.predictions import META, PREDICTIONS, SPLITS, common_columns
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import stage_run
from components.common.runs.storage import digest_file, write_json
from components.common.training import backbones, checkpoints, devices
from components.common.training.reader import Reader


def run(*, shards: list[str], out: str, params: Toy, runtime: Runtime, backbone: str | None = None) -> None:
    devices.set_up("cpu", params.seed)
    opened = open_shards(shards)
    resnet, mean, std, inputs, upstream = backbones.start(backbone, params.arch, opened)
    with stage_run("toy", out, params, inputs, runtime=runtime, upstream=upstream) as job:
        about = {
            **begin_description("toy"),
            "arch": params.arch,
            "size": opened.size,
            "bits": opened.bits,
            "normalisation": {"mean": mean, "std": std},
            "preprocessing": opened.preprocessing,
            "inputs": job.inputs,
        }
        network = fit(Brightness(about, resnet).eval(), Reader(opened, "train"))
        save_file(checkpoints.copy_weights(network.resnet), job.folder / WEIGHTS)
        write_json(job.folder / DESCRIPTION, about | {"sha256": digest_file(job.folder / WEIGHTS)})
        tables = [predict(network, Reader(opened, split, META), split) for split in SPLITS]
        pq.write_table(pa.concat_tables(tables), job.folder / PREDICTIONS)
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
