"""Parameters of `toy`."""

from components.common.runs.params import Arch, Section, Seed


class Toy(Section):
    """Regression of the mean brightness of an image."""

    arch: Arch = "resnet18"
    """Backbone."""
    seed: Seed = 0
    """Seed of a backbone that is not pretrained."""
