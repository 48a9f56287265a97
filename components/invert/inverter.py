"""A trained model at work: images to latents in W+ and back; and all that this takes, to `model.safetensors` and from it.

Names in that file begin with `encoder.`, `generator.`, `judge.` (the backbone whose features reconstructions are compared in) and,
where latents are refined, which takes the training's loss, `perceptual.`; `mean_image` is that of the train split.
"""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from components.common.training import backbones
from components.invert.encoder import Encoder
from components.invert.features import FeatureSpace, maps_distance
from components.invert.generator import SHAPE, Generator, to_unit
from components.invert.params import Invert
from components.invert.quality import ms_ssim, mse, psnr, ssim

REFINE_LR = 0.05
"""Of Adam, as it refines latents."""
GENERATOR, ENCODER, JUDGE, PERCEPTUAL, MEAN_IMAGE = "generator.", "encoder.", "judge.", "perceptual.", "mean_image"
ERRORS = ("mse", "psnr", "ssim", "ms_ssim", "feature_distance", "mean_image_psnr")
"""Of a reconstruction; the last one is of the mean image in its place."""
SETTINGS = ("arch", *SHAPE, "refine_steps", "lambda_pixel", "lambda_perceptual", "lambda_latent")
"""Parameters that latents depend on; model.json holds them."""


class Inverter:
    """Encoder and generator, and the loss by which latents are refined."""

    def __init__(self, params: Invert, encoder: Encoder, generator: Generator, normalisation: Mapping[str, float], perceptual: Any):
        """Puts the parts together; the generator is frozen.

        Args:
            params: the SETTINGS.
            encoder: images to latents.
            generator: latents to images.
            normalisation: mean and std of the encoder's input.
            perceptual: the FeatureSpace of the perceptual loss; None: there is none.
        """
        self.params, self.normalisation = params, normalisation
        self.encoder, self.generator = encoder, generator.requires_grad_(False)
        self.perceptual: FeatureSpace | None = perceptual

    def encode(self, image_B1SS: Tensor) -> Tensor:
        """(B, N, latent_dim) of images in [0, 1]: where the encoder puts them."""
        w: Tensor = self.encoder((image_B1SS - self.normalisation["mean"]) / self.normalisation["std"])
        return w

    def latents(self, image_B1SS: Tensor) -> Tensor:
        """(B, N, latent_dim) as the encoder puts them, without autocast: on every device the same but for rounding."""
        self.encoder.eval()
        with torch.no_grad():
            return self.encode(image_B1SS)

    @torch.no_grad()
    def image(self, w_BND: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1]: the generator's images of latents."""
        return to_unit(self.generator.synthesise(w_BND))

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

    @torch.no_grad()
    def perceived(self, image: Tensor) -> list[Tensor]:
        """Maps of images in the perceptual backbone."""
        return self.perceptual.maps(image) if self.perceptual else []

    def refine(self, image: Tensor, w: Tensor) -> Tensor:
        """Minimises the training's loss over the latents of each image, from where the encoder puts them."""
        w = w.clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=REFINE_LR)
        perceived = self.perceived(image)
        for _ in range(self.params.refine_steps):
            # Summed over the batch, so that an image's steps do not depend on what else is in it.
            loss = len(image) * torch.stack(list(self.terms(image, perceived, w).values())).sum()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        return w.detach()


class Trained:
    """What invert leaves behind."""

    def __init__(self, inverter: Inverter, judge: FeatureSpace, mean_image: Tensor):
        """Takes the parts, whose training is over.

        Args:
            inverter: encoder and generator.
            judge: the feature space of the feature distance and of KID.
            mean_image: (1, 1, S, S), of the train split.
        """
        self.inverter, self.judge, self.mean_image = inverter, judge, mean_image

    def latents(self, image_B1SS: Tensor) -> Tensor:
        """(B, N, latent_dim), refined if the parameters say so; an image's do not depend on what else is in the batch.

        Refining takes float64. Adam moves latents whose gradient is nearly 0 as far as others, so that within tens of steps it makes
        decibels of the rounding errors of float32, which differ between batches, numbers of threads and devices.
        """
        if not self.inverter.params.refine_steps:
            return self.inverter.latents(image_B1SS)
        image = image_B1SS.double()
        return self._double.refine(image, self._double.latents(image)).float()

    def reconstruct(self, image_B1SS: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1]: the generator's images of the latents."""
        return self.inverter.image(self.latents(image_B1SS))

    @cached_property
    def _double(self) -> Inverter:
        """A copy in float64."""
        one = self.inverter
        encoder, generator = copy.deepcopy(one.encoder).double(), copy.deepcopy(one.generator).double()
        return Inverter(one.params, encoder, generator, one.normalisation, one.perceptual and one.perceptual.double())

    @torch.no_grad()
    def errors(self, image: Tensor, made: Tensor) -> dict[str, Tensor]:
        """(B,) by the names in ERRORS: how reconstructions differ from their originals."""
        pixels = [measure(image, made) for measure in (mse, psnr, ssim, ms_ssim)]
        values = [*pixels, self.judge.distance(image, made), psnr(image, self.mean_image)]
        return dict(zip(ERRORS, values, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """The content of model.safetensors."""
        inverter = self.inverter
        parts: dict[str, nn.Module] = {ENCODER: inverter.encoder, GENERATOR: inverter.generator, JUDGE: self.judge.resnet}
        if inverter.perceptual and inverter.params.refine_steps:
            parts[PERCEPTUAL] = inverter.perceptual.resnet
        found = {f"{prefix}{name}": value for prefix, part in parts.items() for name, value in part.state_dict().items()}
        return {name: value.detach().cpu().contiguous() for name, value in {**found, MEAN_IMAGE: self.mean_image}.items()}

    def description(self) -> dict[str, Any]:
        """What model.json must hold beside."""
        inverter, spaces = self.inverter, {"judge": self.judge, "perceptual": self.inverter.perceptual}
        used = {f"{name}_normalisation": dict(zip(("mean", "std"), space.mean_std, strict=True)) for name, space in spaces.items() if space}
        return {
            **{name: getattr(inverter.params, name) for name in SETTINGS},
            "normalisation": dict(inverter.normalisation),
            **{name: space.name if space else "none" for name, space in spaces.items()},
            **used,
        }


def rebuild(description: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> Trained:
    """What invert left behind.

    Args:
        description: content of model.json.
        weights: of model.safetensors.
        device: where it is to compute.

    Raises:
        KeyError: something is missing.
        RuntimeError: the weights do not fit the description.
    """
    params = Invert.model_validate({name: description[name] for name in SETTINGS})
    generator = Generator(*(description[name] for name in SHAPE))
    generator.load_state_dict(part(weights, GENERATOR))
    encoder = Encoder(backbones.build(params.arch), params.size, generator.latents, torch.zeros(params.latent_dim))
    encoder.load_state_dict(part(weights, ENCODER))
    spaces = {name: _space(name, description, part(weights, f"{name}."), device) for name in ("judge", "perceptual")}
    whole = Inverter(params, encoder.to(device).eval(), generator.to(device).eval(), description["normalisation"], spaces["perceptual"])
    assert spaces["judge"], "a perceptual backbone may be missing, the judge may not"
    return Trained(whole, spaces["judge"], weights[MEAN_IMAGE].to(device))


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _space(name: str, description: Mapping[str, Any], weights: dict[str, Tensor], device: torch.device) -> FeatureSpace | None:
    if name == "perceptual" and not weights:
        return None
    resnet = backbones.build(description["arch"])
    resnet.load_state_dict(weights)
    used = description[f"{name}_normalisation"]
    return FeatureSpace(description[name], resnet, (used["mean"], used["std"]), device)
