"""Trains a GAN inversion: shards and a backbone to `model.safetensors`, and how well it reconstructs images.

First a StyleGAN2 is trained on the train split, unless --generator names one, then an encoder into its latents. The running average
of the generator's weights is kept. The test split is read once, at the end.
"""

import logging
import math
import shutil

import pyarrow as pa
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from components.common.formats.history import metrics_of
from components.common.formats.pages import FIGURES
from components.common.formats.predictions import common_columns, write_predictions
from components.common.runs import storage
from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.runs.stage_run import StageRun
from components.common.training import checkpoints, devices, loop, processes
from components.common.training.inference import write_model
from components.common.training.reader import Reader
from components.common.training.stage import attach_results, train, training_run
from components.invert import figures
from components.invert.encoder import Encoder
from components.invert.encoder_training import EncoderTraining
from components.invert.features import FeatureSpace
from components.invert.gan_training import GanTraining
from components.invert.generator import Generator, build_generator
from components.invert.image_quality import scales
from components.invert.inputs import InputFolders, Inputs, open_inputs
from components.invert.inverter import TrainedInverter
from components.invert.kid import kid
from components.invert.params import Invert
from components.invert.pixels import mean_image
from components.invert.predictions import Measured, measure

GAN = "gan"  # folder of the first phase in the work folder: checkpoints, history, and in the end the generator
GENERATOR = "generator.safetensors"

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

    Raises UserError for inputs that cannot be used, and Interrupted after a signal, when the checkpoint is written.

    Args:
        shards: output folders of preprocess.
        out: output folder.
        params: the section `invert`.
        runtime: the section `runtime`.
        backbone: output folder of pretrain that the encoder starts from; None: from scratch.
        perceptual: output folder of pretrain, for the perceptual loss; None: that of `backbone`.
        judge: output folder of pretrain, for feature distances and KID; None: a network with random weights.
        generator: output folder of an earlier run of this stage, whose generator is used; None: one is trained.
    """
    folders = InputFolders(backbone, perceptual, judge, generator)
    with training_run("invert", out, params, runtime, lambda: open_inputs(params, open_shards(shards), folders)) as (inputs, job):
        weights = inputs.generator or train_generator(params, runtime, inputs.train, job)
        log.info("invert: trains the encoder for %d epochs", params.epochs)
        training = prepare_encoder(params, inputs, weights)
        history = train(training, "invert", job, params.epochs, runtime)
        finish(training, inputs, job, history)


def train_generator(params: Invert, runtime: Runtime, reader: Reader, job: StageRun | None) -> dict[str, Tensor]:
    """Trains the generator, unless a stopped run has finished it; returns the averaged weights."""
    work = job.folder / GAN if job else None
    weights = processes.broadcast_object(load_file(work / GENERATOR) if work and (work / GENERATOR).exists() else None)
    if weights is not None:
        return weights
    log.info("invert: trains the generator for %d epochs", params.gan_epochs)
    training = GanTraining(params, reader)
    with processes.shared_errors():
        if work:
            work.mkdir(exist_ok=True)

    def record(numbers: dict[str, float], epoch: int) -> None:
        assert job, "the main process writes"
        job.log({f"gan_{name}": value for name, value in numbers.items()}, epoch)

    loop.Trainer(training, "invert", work, params.gan_epochs, runtime).run(record if job else None)
    averaged = checkpoints.copy_weights(training.average)
    with processes.shared_errors():
        if work:
            storage.write(str(work / GENERATOR), save(averaged))
    return averaged


def prepare_encoder(params: Invert, inputs: Inputs, weights: dict[str, Tensor]) -> EncoderTraining:
    """Prepares the training of the encoder, whose initial weights do not depend on the perceptual loss."""
    device = devices.set_up(params.device, params.seed)
    generator = build_generator(params)
    generator.load_state_dict(weights)
    encoder = Encoder(inputs.resnet, params.size, generator.latents, generator.mean_latent())
    return EncoderTraining(params, inputs, generator.to(device).eval(), encoder.to(device))


def finish(training: EncoderTraining, inputs: Inputs, job: StageRun | None, history: list[dict[str, float]]) -> None:
    """Reconstructs val and test in all processes; the main one writes all outputs."""
    params, batch_size = training.params, training.batch_size
    mean = mean_image(inputs.train, params.size, batch_size, training.device)
    trained = TrainedInverter(training.inverter, inputs.judge, mean)
    readers = {"val": inputs.val, "test": inputs.test}
    measured = {split: measure(trained, reader, batch_size, split) for split, reader in readers.items()}

    def write() -> None:
        assert job, "the main process writes"
        common = {split: common_columns(reader.table, split, "invert") for split, reader in readers.items()}
        write_predictions(job.folder, [pa.table({**common[split], **found.errors}) for split, found in measured.items()])
        distances = set_distances(training.generator, inputs.judge, measured["test"], batch_size, params.seed)
        figures.draw(job.folder / FIGURES, measured["test"].shown, training.generator, params.seed)
        description = {
            **trained.description(),
            "ms_ssim_scales": scales(params.size),
            **{name: None if math.isnan(value) else value for name, value in distances.items()},
            "size": inputs.shards.size,
            "bits": inputs.shards.bits,
        }
        write_model(job, trained.weights(), inputs.shards, description)
        for name in loop.RESULTS:
            if (job.folder / GAN / name).exists():
                shutil.copyfile(job.folder / GAN / name, job.folder / f"{GAN}_{name}")
                job.attach(f"{GAN}_{name}")
        errors = {f"val_{name}": float(values.mean()) for name, values in measured["val"].errors.items()}
        attach_results(job)
        job.attach(FIGURES)
        metrics = {"train_images": len(inputs.train), **metrics_of(history[-1]), **errors, **distances}
        job.publish(metrics, drop=(GAN, checkpoints.FOLDER))

    processes.on_main(write)


def set_distances(generator: Generator, judge: FeatureSpace, test: Measured, batch_size: int, seed: int) -> dict[str, float]:
    """Computes the KID of as many generated images, and of the reconstructions, to the test images.

    Features are divided by their root mean square over the test images: random networks have a scale of their own, and the kernel
    is meant for features of about 1.
    """
    count = len(test.originals)
    if count < 2:
        return {"kid_samples": float("nan"), "kid_reconstructions": float("nan")}
    unit = float((test.originals**2).mean() ** 0.5)
    generated = torch.cat([judge.pooled(images) for images in generator.samples(count, batch_size, seed)]).double().cpu().numpy()
    return {
        "kid_samples": kid(generated / unit, test.originals / unit),
        "kid_reconstructions": kid(test.reconstructions / unit, test.originals / unit, paired=True),
    }
