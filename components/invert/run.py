"""GAN inversion: shards and a backbone to `model.safetensors`, and how well it reconstructs images.

First a StyleGAN2 is trained on the train split, unless --generator names one, then an encoder into its latents. Of the
generator the running average is kept. The test split is read once, at the end.
"""

import logging
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from components.common.runs import storage
from components.common.runs.params import Runtime
from components.common.runs.shards import Shards, open_shards
from components.common.runs.stage_run import StageRun, stage_run
from components.common.runs.storage import write_json
from components.common.training import checkpoints, loop
from components.common.training.progress import VOLATILE
from components.common.training.reader import Reader
from components.invert.encoder import Encoder
from components.invert.features import FeatureSpace
from components.invert.gan import Adversarial, samples, start_generator
from components.invert.generator import Generator
from components.invert.inversion import Inversion
from components.invert.inverter import Trained
from components.invert.kid import kid
from components.invert.params import Invert
from components.invert.pixels import mean_image, write_picture
from components.invert.predictions import SHOWN, Measured, measure, rows
from components.invert.quality import scales
from components.invert.sources import MODEL, WEIGHTS, Folders, Sources, open_sources

GAN = "gan"
"""Folder of the first phase in the work folder: checkpoints, history, and in the end the generator."""
GENERATOR = "generator.safetensors"
GAN_HISTORY = "gan_history.csv"
ROWS = 3
"""Of SHOWN generated images each, in a picture."""

log = logging.getLogger(__name__)


def run(
    *,
    shards: list[str],
    out: str,
    params: Invert,
    runtime: Runtime,
    backbone: str | None = None,
    perceptual: str | None = None,
    judge: str | None = None,
    generator: str | None = None,
) -> None:
    """Trains a generator and an encoder into its latents, and reconstructs the val and test images.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `invert`.
        runtime: the section `runtime`.
        backbone: output folder of pretrain, where the encoder starts; None: from scratch.
        perceptual: output folder of pretrain, for the perceptual loss; None: that of `backbone`.
        judge: output folder of pretrain, for feature distances and KID; None: a network with random weights.
        generator: output folder of an earlier run of this stage, whose generator is used; None: one is trained.

    Raises:
        UserError: inputs that cannot be used.
        Interrupted: a signal came; the checkpoint is written.
    """
    sources = open_sources(params, open_shards(shards), Folders(backbone, perceptual, judge, generator))
    with stage_run("invert", out, params, sources.inputs, runtime=runtime, upstream=sources.upstream) as job:
        weights = sources.generator or train_generator(params, runtime, sources.train, job)
        log.info("invert: the encoder, %d epochs", params.epochs)
        inversion = start_inversion(params, sources, weights)
        history = loop.Fit(inversion, "invert", job.folder, params.epochs, runtime).run(job.log)
        metrics = {name: value for name, value in history[-1].items() if name not in (*VOLATILE, "epoch")}
        metrics = {"train_images": len(sources.train), **metrics, **finish(inversion, sources, job)}
        job.attach(loop.HISTORY)
        job.attach("figures")
        job.publish(metrics, drop=(GAN, checkpoints.FOLDER))


def train_generator(params: Invert, runtime: Runtime, train: Reader, job: StageRun) -> dict[str, Tensor]:
    """The first phase, or what it left behind in the work folder: the averaged generator's weights."""
    work = job.folder / GAN
    if not (work / GENERATOR).exists():
        work.mkdir(exist_ok=True)
        log.info("invert: first the generator, %d epochs", params.gan_epochs)
        task = Adversarial(params, train)
        fit = loop.Fit(task, "invert", work, params.gan_epochs, runtime)
        fit.run(lambda numbers, epoch: job.log({f"gan_{name}": value for name, value in numbers.items()}, epoch))
        weights = {name: value.cpu().contiguous() for name, value in task.average.state_dict().items()}
        storage.write(str(work / GENERATOR), save(weights))
    return load_file(work / GENERATOR)


def start_inversion(params: Invert, sources: Sources, weights: dict[str, Tensor]) -> Inversion:
    """The second phase, not yet begun. What it starts from does not depend on the perceptual loss."""
    device = loop.set_up(params.device, params.seed)
    generator = start_generator(params)
    generator.load_state_dict(weights)
    encoder = Encoder(sources.resnet, params.size, generator.latents, generator.mean_latent())
    return Inversion(params, sources, generator.to(device).eval(), encoder.to(device))


def finish(inversion: Inversion, sources: Sources, job: StageRun) -> dict[str, float]:
    """Reconstructs val and test, writes everything, and returns what is worth a look."""
    mean = mean_image(sources.train, inversion.params.size, inversion.batch_size, inversion.device)
    trained = Trained(inversion.inverter, sources.judge, mean)
    readers = {"val": sources.val, "test": sources.test}
    measured = {split: measure(trained, reader, inversion.batch_size) for split, reader in readers.items()}
    tables = [rows(readers[split], split, found) for split, found in measured.items()]
    pq.write_table(pa.concat_tables(tables), job.folder / "predictions.parquet")
    distances = set_distances(inversion.generator, sources.judge, measured["test"], inversion.batch_size, inversion.params.seed)
    draw(inversion, measured["test"], job)
    write_model(trained, sources.shards, distances, job)
    if (job.folder / GAN / loop.HISTORY).exists():
        shutil.copyfile(job.folder / GAN / loop.HISTORY, job.folder / GAN_HISTORY)
    return {f"val_{name}": float(values.mean()) for name, values in measured["val"].errors.items()} | distances


def set_distances(generator: Generator, judge: FeatureSpace, test: Measured, batch_size: int, seed: int) -> dict[str, float]:
    """KID to the test images, of as many generated ones and of their reconstructions.

    Features are in units of their root mean square over the test images: random networks have a scale of their own, and
    the kernel is meant for features of about 1.
    """
    count = len(test.originals)
    if count < 2:
        return {"kid_samples": float("nan"), "kid_reconstructions": float("nan")}
    unit = float((test.originals**2).mean() ** 0.5)
    pooled = [judge.pooled(images) for images in samples(generator, count, batch_size, seed)]
    generated = torch.cat(pooled).double().cpu().numpy()
    return {
        "kid_samples": kid(generated / unit, test.originals / unit),
        "kid_reconstructions": kid(test.reconstructions / unit, test.originals / unit, paired=True),
    }


def draw(inversion: Inversion, test: Measured, job: StageRun) -> None:
    """Pictures: originals, reconstructions and their difference in rows; and images of random latents."""
    folder = job.folder / "figures"
    folder.mkdir(exist_ok=True)
    write_picture(folder / "reconstructions.png", test.shown)
    write_picture(folder / "samples.png", list(samples(inversion.generator, ROWS * SHOWN, SHOWN, inversion.params.seed)))


def write_model(trained: Trained, shards: Shards, distances: dict[str, float], job: StageRun) -> None:
    """Writes the weights, and what a user of them must know."""
    save_file(trained.weights(), job.folder / WEIGHTS)
    description: dict[str, Any] = {
        "task": "invert",
        **trained.description(),
        "ms_ssim_scales": scales(trained.inverter.params.size),
        **{name: None if value != value else value for name, value in distances.items()},
        "stored_size": shards.size,
        "bits": shards.bits,
        "preprocessing": shards.preprocessing,
        "inputs": job.inputs,
        "sha256": storage.digest_file(job.folder / WEIGHTS),
    }
    write_json(job.folder / MODEL, description)
