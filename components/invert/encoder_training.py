"""Training of the encoder through a frozen generator."""

from collections.abc import Iterator

import numpy as np
import torch

from components.common.training import devices, loop, optimization, processes
from components.common.training.batch_norm import synchronise
from components.common.training.reader import Batch
from components.invert.encoder import Encoder
from components.invert.generator import Generator
from components.invert.image_quality import psnr
from components.invert.inputs import Inputs
from components.invert.inverter import Inverter
from components.invert.params import Invert
from components.invert.pixels import to_images


class EncoderTraining(loop.Trainable):
    """The encoder, its optimizer, and what is frozen: the generator and the perceptual backbone."""

    metric = "val_psnr"
    stateful = ("encoder", "optimizer")

    def __init__(self, params: Invert, inputs: Inputs, generator: Generator, encoder: Encoder):
        self.params, self.train, self.val = params, inputs.train, inputs.val
        self.encoder, self.generator = encoder, generator
        self.inverter = Inverter(params, encoder, generator, inputs.normalisation, inputs.perceptual)
        self.device = encoder.mean_latent.device
        self.batch_size = params.batch_size
        self.steps_per_epoch = len(inputs.train) // params.batch_size
        processes.check_batch("invert.batch_size", params.batch_size)
        self.compiled = (encoder,)
        synchronise(encoder)
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=params.lr, fused=True)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""
        self.encoder.train()
        return devices.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the optimizer."""
        optimization.set_learning_rate(self.optimizer, self.params.lr, progress)
        image = to_images(batch.images, self.params.size, self.device)
        with devices.autocast(self.device):
            w = self.inverter.encode(image)
        share = len(image) / self.batch_size
        found = self.inverter.terms(image, self.inverter.perceptual_maps(image), w)
        terms = {f"loss_{name}": term * share for name, term in found.items()}
        return {**optimization.step_together(self.optimizer, torch.stack(list(terms.values())).sum(), terms)}

    @devices.exact()
    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Measures how well the validation split is reconstructed, without refining."""
        values, rows = [torch.empty(0, device=self.device)], [np.empty(0, np.int64)]
        with processes.shared_errors():
            for batch in devices.on_device(self.val.in_order(self.batch_size), self.device):
                image = to_images(batch.images, self.params.size, self.device)
                values.append(psnr(image, self.inverter.image(self.inverter.latents(image))))
                rows.append(batch.rows)
        return {"val_psnr": float(processes.assemble(torch.cat(values), np.concatenate(rows), len(self.val)).mean())}
