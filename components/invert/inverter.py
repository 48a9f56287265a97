"""Images to latents in W+ and back; and everything that this needs, to `model.safetensors` and from it.

Names in that file begin with `encoder.`, `generator.`, `judge.` (the backbone in whose features reconstructions are compared) and,
if latents are refined, which needs the training loss, `perceptual.`; `mean_image` is that of the train split.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from components.common.training import backbones, optimization
from components.common.training.checkpoints import copy_weights
from components.invert.encoder import Encoder
from components.invert.features import FeatureSpace, maps_distance
from components.invert.generator import SHAPE, Generator, build_generator, to_unit
from components.invert.image_quality import ms_ssim, mse, psnr, ssim
from components.invert.params import Invert

REFINE_LR = 0.005
"""Learning rate of Adam when it refines latents. Its steps must be small compared with the spread of latents: at ten times this rate the
reconstructions become worse at first, and rounding errors, which differ between batches and devices, grow to tenths of a decibel."""
GENERATOR, ENCODER, JUDGE, PERCEPTUAL, MEAN_IMAGE = "generator.", "encoder.", "judge.", "perceptual.", "mean_image"
ERRORS = ("mse", "psnr", "ssim", "ms_ssim", "feature_distance", "mean_image_psnr")
"""Errors of a reconstruction; the last is that of the mean image in its place."""
SETTINGS = ("arch", *SHAPE, "refine_steps", "lambda_pixel", "lambda_perceptual", "lambda_latent")
"""Parameters that latents depend on."""
MODEL_KEYS = {name: "generator_size" if name == "size" else name for name in SETTINGS}
"""Their keys in model.json, where `size` is that of the input images."""


class Inverter:
    """Encoder and frozen generator, and the loss that refines latents; of the parameters the SETTINGS are used."""

    def __init__(
        self, params: Invert, encoder: Encoder, generator: Generator, normalisation: Mapping[str, float], perceptual: FeatureSpace | None
    ):
        self.params, self.normalisation, self.perceptual = params, normalisation, perceptual
        self.encoder, self.generator = encoder, generator.requires_grad_(False)

    def encode(self, image_B1SS: Tensor) -> Tensor:
        """Encodes images in [0, 1] as (B, N, latent_dim)."""
        w: Tensor = self.encoder((image_B1SS - self.normalisation["mean"]) / self.normalisation["std"])
        return w

    def latents(self, image_B1SS: Tensor) -> Tensor:
        """Encodes without gradient or autocast, so that devices agree up to rounding."""
        self.encoder.eval()
        with torch.no_grad():
            return self.encode(image_B1SS)

    @torch.no_grad()
    def image(self, w_BND: Tensor) -> Tensor:
        """Generates images (B, 1, S, S) in [0, 1] from latents."""
        return to_unit(self.generator.synthesise(w_BND))

    def terms(self, image: Tensor, maps: list[Tensor], w_BND: Tensor) -> dict[str, Tensor]:
        """Computes the weighted losses, each a mean over the batch: Richardson et al. 2021, equations 1 to 3 and 5, without identity.

        Images are (B, 1, S, S) in [0, 1]; `maps` are theirs in the perceptual backbone, empty without one.
        """
        params, made = self.params, (self.generator.synthesise(w_BND) + 1) / 2
        terms = {"pixel": params.lambda_pixel * mse(made, image).mean()}
        if self.perceptual:
            terms["perceptual"] = params.lambda_perceptual * maps_distance(self.perceptual.maps(made), maps).mean()
        away = (w_BND - self.encoder.mean_latent).square().mean((1, 2))
        return terms | {"latent": params.lambda_latent * away.mean()}

    @torch.no_grad()
    def perceptual_maps(self, image: Tensor) -> list[Tensor]:
        """Computes the maps of images in the perceptual backbone; empty without one."""
        return self.perceptual.maps(image) if self.perceptual else []

    def refine(self, image: Tensor, w: Tensor) -> Tensor:
        """Minimises the training loss over the latents of each image, starting from `w`."""
        w = w.clone().requires_grad_()
        optimizer = torch.optim.Adam([w], lr=REFINE_LR)
        maps = self.perceptual_maps(image)
        for _ in range(self.params.refine_steps):
            # Summed over the batch, so that an image's steps do not depend on the other images.
            optimization.step(optimizer, len(image) * torch.stack(list(self.terms(image, maps, w).values())).sum())
        return w.detach()


class TrainedInverter:
    """The result of the stage: an inverter, its judge of feature distance and KID, and the mean image (1, 1, S, S) of the train split."""

    def __init__(self, inverter: Inverter, judge: FeatureSpace, mean_image: Tensor):
        self.inverter, self.judge, self.mean_image = inverter, judge, mean_image

    def latents(self, image_B1SS: Tensor) -> Tensor:
        """Computes (B, N, latent_dim), refined if the parameters say so; an image's latents do not depend on the rest of the batch."""
        w = self.inverter.latents(image_B1SS)
        return self.inverter.refine(image_B1SS, w) if self.inverter.params.refine_steps else w

    def reconstruct(self, image_B1SS: Tensor) -> Tensor:
        """Reconstructs images as (B, 1, S, S) in [0, 1]."""
        return self.inverter.image(self.latents(image_B1SS))

    @torch.no_grad()
    def errors(self, image: Tensor, made: Tensor) -> dict[str, Tensor]:
        """Computes the ERRORS of reconstructions, (B,) each."""
        pixels = [measure(image, made) for measure in (mse, psnr, ssim, ms_ssim)]
        values = [*pixels, self.judge.distance(image, made), psnr(image, self.mean_image)]
        return dict(zip(ERRORS, values, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """Returns the content of model.safetensors."""
        inverter = self.inverter
        parts: dict[str, nn.Module] = {ENCODER: inverter.encoder, GENERATOR: inverter.generator, JUDGE: self.judge.resnet}
        if inverter.perceptual and inverter.params.refine_steps:
            parts[PERCEPTUAL] = inverter.perceptual.resnet
        found = {f"{prefix}{name}": value for prefix, part in parts.items() for name, value in copy_weights(part).items()}
        return {**found, MEAN_IMAGE: self.mean_image.cpu().contiguous()}

    def description(self) -> dict[str, Any]:
        """Returns what a user of the weights must know, for model.json."""
        inverter, spaces = self.inverter, {"judge": self.judge, "perceptual": self.inverter.perceptual}
        used = {f"{name}_normalisation": dict(zip(("mean", "std"), space.mean_std, strict=True)) for name, space in spaces.items() if space}
        return {
            **{key: getattr(inverter.params, name) for name, key in MODEL_KEYS.items()},
            "normalisation": dict(inverter.normalisation),
            **{name: space.name if space else "none" for name, space in spaces.items()},
            **used,
        }


def rebuild(description: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> TrainedInverter:
    """Rebuilds a trained inverter from model.json and its weights; a RuntimeError if they do not fit together."""
    params = Invert.model_validate({name: description[key] for name, key in MODEL_KEYS.items()})
    generator = build_generator(params)
    generator.load_state_dict(part(weights, GENERATOR))
    encoder = Encoder(backbones.build(params.arch), params.size, generator.latents, torch.zeros(params.latent_dim))
    encoder.load_state_dict(part(weights, ENCODER))
    spaces = {name: _space(name, description, part(weights, f"{name}."), device) for name in ("judge", "perceptual")}
    inverter = Inverter(params, encoder.to(device).eval(), generator.to(device).eval(), description["normalisation"], spaces["perceptual"])
    assert spaces["judge"], "every trained inverter has a judge"
    return TrainedInverter(inverter, spaces["judge"], weights[MEAN_IMAGE].to(device))


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _space(name: str, description: Mapping[str, Any], weights: dict[str, Tensor], device: torch.device) -> FeatureSpace | None:
    if name == "perceptual" and not weights:
        return None
    resnet = backbones.build(description["arch"])
    resnet.load_state_dict(weights)
    normalisation = description[f"{name}_normalisation"]
    return FeatureSpace(description[name], resnet, (normalisation["mean"], normalisation["std"]), device)
