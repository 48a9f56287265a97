"""Training of the encoder on top of a frozen generator."""

from collections.abc import Iterator
from typing import Any

import torch

from components.common.errors import UserError
from components.common.training import loop
from components.common.training.reader import Batch
from components.invert.encoder import Encoder
from components.invert.generator import Generator
from components.invert.inverter import Inverter
from components.invert.params import Invert
from components.invert.pixels import to_images
from components.invert.quality import psnr
from components.invert.sources import Sources

WARMUP = 0.1
"""Share of the steps with a rising learning rate."""


class Inversion(loop.Task):
    """The encoder, its optimizer, and what is frozen: the generator and the perceptual backbone."""

    def __init__(self, params: Invert, sources: Sources, generator: Generator, encoder: Encoder):
        """Prepares the training.

        Args:
            params: the section.
            sources: the images, the perceptual backbone, and the normalisation of the encoder's input.
            generator: becomes part of the loss and is not trained.
            encoder: is trained.
        """
        train = sources.train
        if len(train) < params.batch_size:
            raise UserError(f"invert.batch_size: {params.batch_size}, but the train split has {len(train)} images; make it smaller")
        self.params, self.train, self.val = params, train, sources.val
        self.encoder, self.generator = encoder, generator
        self.inverter = Inverter(params, encoder, generator, sources.normalisation, sources.perceptual)
        self.device = encoder.mean_latent.device
        self.batch_size = params.batch_size
        self.steps_per_epoch = len(train) // params.batch_size
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=params.lr, fused=True)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        self.encoder.train()
        return loop.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lr * loop.cosine(progress, WARMUP)
        image = to_images(batch.images, self.params.size, self.device)
        with loop.autocast(self.device):
            w = self.inverter.encode(image)
        terms = self.inverter.terms(image, self.inverter.perceived(image), w)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach()), **{f"loss_{name}": float(term.detach()) for name, term in terms.items()}}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """How the validation split is reconstructed."""
        values = []
        for batch in self.val.in_order(self.batch_size):
            image = to_images(batch.images, self.params.size, self.device)
            values.append(psnr(image, self.inverter.image(self.inverter.latents(image))))
        return {"val_psnr": float(torch.cat(values).mean())}

    def state(self) -> dict[str, Any]:
        """The encoder and the optimizer."""
        return {"encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
