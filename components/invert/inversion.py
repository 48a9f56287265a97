"""Training of the encoder on top of a frozen generator, and the reconstruction of images."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from components.common import loop
from components.common.errors import UserError
from components.common.params import Invert
from components.common.reader import Batch
from components.invert.encoder import Encoder
from components.invert.features import maps_distance
from components.invert.gan import to_unit
from components.invert.generator import Generator
from components.invert.pixels import to_images
from components.invert.quality import mse, psnr
from components.invert.sources import Sources

WARMUP = 0.1
"""Share of the steps with a rising learning rate."""
REFINE_LR = 0.05
"""Of Adam, as it refines latents."""


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
        self.perceptual, self.normalisation = sources.perceptual, sources.normalisation
        self.generator = generator.requires_grad_(False)
        self.encoder = encoder
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
            w = self._encode(image)
        terms = self.terms(image, self._perceived(image), w)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach()), **{f"loss_{name}": float(term.detach()) for name, term in terms.items()}}

    def terms(self, image: Tensor, perceived: list[Tensor], w_BND: Tensor) -> dict[str, Tensor]:
        """The weighted losses, each a mean over the batch: Richardson et al. 2021, equations 1 to 3 and 5, without the identity.

        Args:
            image: (B, 1, S, S), in [0, 1].
            perceived: its maps in the perceptual backbone; empty without one.
            w_BND: latents to judge.
        """
        params, made = self.params, (self.generator.synthesise(w_BND) + 1) / 2
        terms = {"pixel": params.lambda_pixel * mse(made, image).mean()}
        if self.perceptual:
            terms["perceptual"] = params.lambda_perceptual * maps_distance(self.perceptual.maps(made), perceived).mean()
        away = (w_BND - self.encoder.mean_latent).square().mean((1, 2))
        return terms | {"latent": params.lambda_latent * away.mean()}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """How the validation split is reconstructed."""
        values = []
        for batch in self.val.in_order(self.batch_size):
            image = to_images(batch.images, self.params.size, self.device)
            with torch.no_grad():
                values.append(psnr(image, to_unit(self.generator.synthesise(self._latents(image)))))
        return {"val_psnr": float(torch.cat(values).mean())}

    def reconstruct(self, image_B1SS: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1]: the generator's images of the latents, which are refined when the parameters say so."""
        w = self._latents(image_B1SS)
        if self.params.refine_steps:
            w = self._refine(image_B1SS, w)
        with torch.no_grad():
            return to_unit(self.generator.synthesise(w))

    @torch.no_grad()
    def _latents(self, image: Tensor) -> Tensor:
        self.encoder.eval()
        with loop.autocast(self.device):
            return self._encode(image)

    def _refine(self, image: Tensor, w: Tensor) -> Tensor:
        """Minimises the training's loss over the latents of each image, from where the encoder puts them."""
        w = w.clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=REFINE_LR)
        perceived = self._perceived(image)
        for _ in range(self.params.refine_steps):
            # Summed over the batch, so that an image's steps do not depend on what else is in it.
            loss = len(image) * torch.stack(list(self.terms(image, perceived, w).values())).sum()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        return w.detach()

    def _encode(self, image: Tensor) -> Tensor:
        w: Tensor = self.encoder((image - self.normalisation["mean"]) / self.normalisation["std"])
        return w

    @torch.no_grad()
    def _perceived(self, image: Tensor) -> list[Tensor]:
        return self.perceptual.maps(image) if self.perceptual else []

    def state(self) -> dict[str, Any]:
        """The encoder and the optimizer."""
        return {"encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
