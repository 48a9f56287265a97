"""Parameters of `invert`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.common.runs.params import Arch, Device, NonNegative, Positive, Section, Seed


class Invert(Section):
    """GAN inversion: a StyleGAN2 generator, then an encoder into its latent space."""

    arch: Arch = "resnet50"
    """Backbone of the encoder, of the perceptual loss and of the judge; pretrained backbones must have the same architecture."""
    size: Annotated[int, Field(ge=16, le=1024)] = 256
    """Side of the images in pixels, a power of two; the images of the shards are downsampled to it."""
    latent_dim: Positive = 512
    """Dimensions of z and of w."""
    mapping_layers: Positive = 8
    """Layers of the mapping network."""
    channel_base: Positive = 16384
    """Feature maps of R x R pixels have channel_base / R channels."""
    channel_max: Positive = 512
    """Upper bound of the channels of a feature map."""
    gan_epochs: Positive = 100
    """Passes of the generator and the discriminator over the train split."""
    gan_batch_size: Annotated[int, Field(ge=2)] = 32
    """Images per step of the GAN."""
    gan_lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of Adam, for both networks."""
    r1_gamma: NonNegative = 1.0
    """Weight of the R1 penalty on the discriminator; larger images need more."""
    path_weight: NonNegative = 2.0
    """Weight of the path length penalty on the generator; 0: none."""
    perceptual: Literal["none", "scratch", "backbone"] = "backbone"
    """Network of the perceptual loss. none: no such loss; scratch: random weights; backbone: the one given by --perceptual, else
    by --backbone (with neither: random weights)."""
    lambda_pixel: NonNegative = 4.0
    """Weight of the squared error of pixels in [0, 1]; 4 corresponds to 1 for pixels in [-1, 1]."""
    lambda_perceptual: NonNegative = 0.1
    """Weight of the distance in the features of the perceptual network."""
    lambda_latent: NonNegative = 0.005
    """Weight of the squared distance of the latents to the mean latent."""
    epochs: Positive = 100
    """Passes of the encoder over the train split."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Images per step of the encoder."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of the encoder's Adam: linear warm-up, then a cosine."""
    refine_steps: Annotated[int, Field(ge=0)] = 0
    """Optimisation steps on the latents of each validation and test image after the encoder; 0: none."""
    seed: Seed = 0
    """Seed of the weights, the latents, the noise and the order of the images."""
    device: Device = "auto"
    """auto: a GPU if there is one."""

    @model_validator(mode="after")
    def _sizes_can_be_halved(self) -> "Invert":
        if self.size & (self.size - 1):
            raise ValueError(f"size must be a power of two, such as {2 ** (self.size.bit_length() - 1)}, not {self.size}")
        if self.channel_base < self.size:
            raise ValueError("channel_base must be at least size, or the largest maps have no channel")
        return self
