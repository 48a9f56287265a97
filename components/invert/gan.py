"""Training of generator and discriminator: Karras et al. 2020, arXiv 1912.04958 (StyleGAN2)."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.errors import UserError
from components.common.training import loop
from components.common.training.reader import Batch, Reader
from components.invert.discriminator import Discriminator
from components.invert.generator import SHAPE, Generator, to_unit
from components.invert.params import Invert
from components.invert.pixels import to_images

R1_EVERY, PATH_EVERY = 16, 4
"""Steps from one regularisation to the next ("lazy", appendix B; paths more often, as in the authors' later code)."""
MIXING = 0.9
"""Share of the images with two latents (Karras et al. 2019, arXiv 1812.04948, section 3.1)."""
EMA_HALF_LIFE = 10_000
"""Images after which weights count half in the average."""
EMA_RAMP = 0.05
"""At first the half-life is this share of the images seen, lest the average remember the beginning."""
PATH_DECAY = 0.01
"""Weight of a new path length in their running mean a."""


def start_generator(params: Invert) -> Generator:
    """A generator with random weights, of the size that the parameters ask for."""
    return Generator(*(getattr(params, name) for name in SHAPE))


class Adversarial(loop.Task):
    """Both networks, the averaged generator, and their optimizers."""

    def __init__(self, params: Invert, train: Reader):
        if len(train) < params.gan_batch_size:
            message = f"{params.gan_batch_size}, but the train split has {len(train)} images; make it smaller"
            raise UserError(f"invert.gan_batch_size: {message}")
        self.params, self.train = params, train
        self.device = loop.set_up(params.device, params.seed)
        self.generator = start_generator(params).to(self.device)
        self.discriminator = Discriminator(params.size, params.channel_base, params.channel_max).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.batch_size = params.gan_batch_size
        self.steps_per_epoch = len(train) // params.gan_batch_size
        self.optimizers = {
            "generator": _adam(self.generator, params.gan_lr, PATH_EVERY if params.path_weight else 0),
            "discriminator": _adam(self.discriminator, params.gan_lr, R1_EVERY),
        }
        self.path_mean = torch.zeros((), device=self.device)
        self.steps = 0

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        return loop.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step of the discriminator, one of the generator, and one of its average."""
        real = 2 * to_images(batch.images, self.params.size, self.device) - 1
        random = random_generator(self.device, self.params.seed, self.steps)
        numbers = self._step_discriminator(real, random) | self._step_generator(len(real), random)
        self.steps += 1
        self._move_average()
        if not math.isfinite(numbers["loss"] + numbers["loss_discriminator"]):
            raise UserError(f"the adversarial loss is not finite at step {self.steps}; lower invert.gan_lr or raise invert.r1_gamma")
        return numbers

    def _step_discriminator(self, real: Tensor, random: torch.Generator) -> dict[str, float]:
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self._sample(len(real), random)[0]
        loss = (F.softplus(self.discriminator(fake)) + F.softplus(-self.discriminator(real))).mean()
        penalty = loss.new_zeros(())
        if self.steps % R1_EVERY == 0:
            penalty = R1_EVERY * self.params.r1_gamma / 2 * gradient_penalty(self.discriminator, real)
        self._step("discriminator", loss + penalty)
        return {"loss_discriminator": float(loss.detach()), "loss_r1": float(penalty.detach())}

    def _step_generator(self, count: int, random: torch.Generator) -> dict[str, float]:
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self.discriminator(self._sample(count, random)[0])).mean()
        penalty = loss.new_zeros(())
        if self.params.path_weight and self.steps % PATH_EVERY == 0:
            fake, w = self._sample(max(1, count // 2), random)
            lengths = path_lengths(fake, w, random)
            self.path_mean = self.path_mean.lerp(lengths.detach().mean(), PATH_DECAY)
            penalty = PATH_EVERY * self.params.path_weight * (lengths - self.path_mean).square().mean()
        self._step("generator", loss + penalty)
        return {"loss": float(loss.detach()), "loss_path": float(penalty.detach())}

    def _sample(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of random latents, and the latents (B, N, latent_dim)."""
        w = mixed_latents(self.generator, count, random)
        return self.generator.synthesise(w, random), w

    def _step(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizers[name].step()

    def _move_average(self) -> None:
        half_life = min(EMA_HALF_LIFE, EMA_RAMP * self.steps * self.batch_size)
        move_average(self.average, self.generator, 0.5 ** (self.batch_size / half_life))

    def state(self) -> dict[str, Any]:
        """The three networks, the optimizers, and what is counted."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "path_mean": self.path_mean,
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        for network, name in ((self.generator, "generator"), (self.discriminator, "discriminator"), (self.average, "average")):
            network.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.path_mean, self.steps = state["path_mean"].to(self.device), state["steps"]


def gradient_penalty(discriminator: nn.Module, real_B1HW: Tensor) -> Tensor:
    """R1 without its factor: the mean over images of |gradient of D(x) by x|^2 (Mescheder et al. 2018, arXiv 1801.04406, equation 9)."""
    images = real_B1HW.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(image_B1HW: Tensor, w_BND: Tensor, random: torch.Generator) -> Tensor:
    """(B,): |J_w^T y| for random images y ~ N(0, 1 / (H W)): StyleGAN2, equation 4. Over layers the mean square is taken."""
    y = torch.randn(image_B1HW.shape, generator=random, device=random.device) / math.sqrt(image_B1HW[0].numel())
    (gradient,) = torch.autograd.grad((image_B1HW * y).sum(), w_BND, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def mixed_latents(generator: Generator, count: int, random: torch.Generator) -> Tensor:
    """(count, N, latent_dim): w of a random z for each image; most images take another w from some layer on."""
    z = torch.randn(2, count, generator.latent_dim, generator=random, device=random.device)
    first, second = (generator.mapping(part)[:, None] for part in z)
    start = torch.randint(1, generator.latents, (count,), generator=random, device=random.device)
    mixed = torch.rand(count, generator=random, device=random.device) < MIXING
    layers = torch.arange(generator.latents, device=random.device)
    return torch.where((mixed[:, None] & (layers >= start[:, None]))[:, :, None], second, first)


@torch.no_grad()
def samples(generator: Generator, count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Images of `count` random latents without mixing and noise, in batches (B, 1, S, S) in [0, 1]; the same for a seed."""
    z = torch.randn(count, generator.latent_dim, generator=torch.Generator().manual_seed(seed))
    for part in torch.split(z.to(generator.constant.device), batch_size):
        w = generator.mapping(part)[:, None].expand(-1, generator.latents, -1)
        yield to_unit(generator.synthesise(w))


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the running average: average <- decay average + (1 - decay) network."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def random_generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """Draws that depend on seed and step alone."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _adam(network: nn.Module, lr: float, every: int) -> torch.optim.Adam:
    """Adam as StyleGAN2 sets it, slowed for the extra terms of every `every`-th step (appendix B: c = k / (k + 1)); 0: there are none."""
    slower = every / (every + 1) if every else 1.0
    return torch.optim.Adam(network.parameters(), lr=lr * slower, betas=(0.0, 0.99**slower), eps=1e-8, fused=True)
