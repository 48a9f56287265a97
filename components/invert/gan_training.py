"""Training of generator and discriminator: Karras et al. 2020, arXiv 1912.04958 (StyleGAN2)."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.errors import UserError
from components.common.training import devices, loop, optimization, processes
from components.common.training.reader import Batch, Reader
from components.common.training.seeds import torch_generator_for
from components.invert.discriminator import GROUP, Discriminator
from components.invert.generator import Generator, build_generator
from components.invert.layers import normal
from components.invert.params import Invert
from components.invert.pixels import to_images

R1_EVERY, PATH_EVERY = 16, 4  # steps between regularisations ("lazy", appendix B; paths more often, as in the authors' later code)
MIXING = 0.9  # fraction of the images with two latents (Karras et al. 2019, arXiv 1812.04948, section 3.1)
EMA_HALF_LIFE = 10_000  # half-life of the averaged weights, in images
EMA_RAMP = 0.05  # at first the half-life is this fraction of the images seen, so that the average forgets the initial weights
PATH_DECAY = 0.01  # weight of a new path length in the running mean a


class GanTraining(loop.Trainable):
    """Both networks, the averaged generator, and the optimizers."""

    stateful = ("generator", "discriminator", "average", "steps")
    less_memory = "lower invert.gan_batch_size"
    remedy = "lower invert.gan_lr or raise invert.r1_gamma"

    def __init__(self, params: Invert, train: Reader):
        self.params, self.train = params, train
        self.device = devices.set_up(params.device, params.seed)
        self.generator = build_generator(params).to(self.device)
        self.discriminator = Discriminator(params.size, params.channel_base, params.channel_max).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.batch_size = params.gan_batch_size
        _check(self.batch_size)
        self.steps_per_epoch = len(train) // params.gan_batch_size
        self.optimizers = {
            "generator": _adam(self.generator, params.gan_lr, PATH_EVERY if params.path_weight else 0),
            "discriminator": _adam(self.discriminator, params.gan_lr, R1_EVERY),
        }
        self.path_mean = torch.zeros((), device=self.device)
        self.steps = 0

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on."""
        return devices.on_device(self.train.shuffled(self.batch_size, self.params.seed, epoch, start), self.device)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> loop.Numbers:
        """Takes one step of the discriminator, one of the generator, and one of its average."""
        real = 2 * to_images(batch.images, self.params.size, self.device) - 1
        rng = torch_generator_for(self.device, self.params.seed, self.steps)
        numbers = self._step_discriminator(real, rng) | self._step_generator(len(real), rng)
        self.steps += 1
        half_life = min(EMA_HALF_LIFE, EMA_RAMP * self.steps * self.batch_size)
        update_average(self.average, self.generator, 0.5 ** (self.batch_size / half_life))
        return numbers

    def _step_discriminator(self, real: Tensor, rng: torch.Generator) -> loop.Numbers:
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self._sample(len(real), rng)[0]
        loss = (F.softplus(self.discriminator(fake)) + F.softplus(-self.discriminator(real))).mean() / processes.world_size()
        penalty = loss.new_zeros(())
        if self.steps % R1_EVERY == 0:
            penalty = R1_EVERY * self.params.r1_gamma / 2 * gradient_penalty(self.discriminator, real) / processes.world_size()
        terms = {"loss_discriminator": loss, "loss_r1": penalty}
        numbers = optimization.step_together(self.optimizers["discriminator"], loss + penalty, terms)
        return {name: numbers[name] for name in terms}

    def _step_generator(self, count: int, rng: torch.Generator) -> loop.Numbers:
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self.discriminator(self._sample(count, rng)[0])).mean() / processes.world_size()
        penalty = loss.new_zeros(())
        if self.params.path_weight and self.steps % PATH_EVERY == 0:
            fake, w = self._sample(max(1, count // 2), rng)
            lengths = path_lengths(fake, w, rng)
            mean = lengths.detach().mean()
            processes.average_over_ranks([mean])
            self.path_mean = self.path_mean.lerp(mean, PATH_DECAY)
            penalty = PATH_EVERY * self.params.path_weight * (lengths - self.path_mean).square().mean() / processes.world_size()
        return {**optimization.step_together(self.optimizers["generator"], loss + penalty, {"loss": loss, "loss_path": penalty})}

    def _sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        w = mixed_latents(self.generator, count, rng)
        return self.generator.synthesise(w, rng), w

    def state(self) -> dict[str, Any]:
        """Returns the three networks, the optimizers and the counters."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return super().state() | {"optimizers": optimizers, "path_mean": self.path_mean}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` returned."""
        super().restore(state)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.path_mean = state["path_mean"].to(self.device)


def _check(batch_size: int) -> None:
    """Raises UserError if the groups of the discriminator would not fall within the processes."""
    if (ranks := processes.world_size()) > 1 and batch_size % (ranks * GROUP):
        found = f"invert.gan_batch_size: {batch_size} is not a multiple of {GROUP} times {ranks} processes"
        raise UserError(f"{found}; change it or the number of GPUs")


def gradient_penalty(discriminator: nn.Module, real_B1HW: Tensor) -> Tensor:
    """R1 without its factor: the mean over images of |dD(x)/dx|^2 (Mescheder et al. 2018, arXiv 1801.04406, equation 9)."""
    images = real_B1HW.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(image_B1HW: Tensor, w_BND: Tensor, rng: torch.Generator) -> Tensor:
    """(B,): |J_w^T y| for random images y ~ N(0, 1 / (H W)) (StyleGAN2, equation 4), as the root mean square over layers."""
    y = normal(rng, *image_B1HW.shape) / math.sqrt(image_B1HW[0].numel())
    (gradient,) = torch.autograd.grad((image_B1HW * y).sum(), w_BND, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def mixed_latents(generator: Generator, count: int, rng: torch.Generator) -> Tensor:
    """(count, N, latent_dim): w of a random z for each image; most images switch to another w from a random layer on."""
    total = count * processes.world_size()
    mine = processes.share(total)
    z = torch.randn(2, total, generator.latent_dim, generator=rng, device=rng.device)[:, mine]
    first, second = (generator.mapping(part)[:, None] for part in z)
    start = torch.randint(1, generator.latents, (total,), generator=rng, device=rng.device)[mine]
    mixed = torch.rand(total, generator=rng, device=rng.device)[mine] < MIXING
    layers = torch.arange(generator.latents, device=rng.device)
    return torch.where((mixed[:, None] & (layers >= start[:, None]))[:, :, None], second, first)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Updates the running average: average <- decay average + (1 - decay) network."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def _adam(network: nn.Module, lr: float, every: int) -> torch.optim.Adam:
    """Adam as in StyleGAN2, slowed to compensate for the extra term of every `every`-th step (appendix B: c = k / (k + 1)), if any."""
    slower = every / (every + 1) if every else 1.0
    return torch.optim.Adam(network.parameters(), lr=lr * slower, betas=(0.0, 0.99**slower), eps=1e-8, fused=True)
