"""References for pretraining: the lower bound, the authors' form of the IFA term, lightly and albumentations."""

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.common.training import backbones, devices
from components.pretrain import augment
from components.pretrain.params import PRESETS


class Floor:
    """Lower bound: the arithmetic that no implementation can avoid."""

    def __init__(self, arch: str, device: torch.device):
        self.device = device
        self.query = backbones.build(arch).to(device).to(memory_format=torch.channels_last)
        self.key = copy.deepcopy(self.query).requires_grad_(False)

    def step(self, query: Tensor, key: Tensor) -> None:
        """Run the query encoder forward and backward, and the key encoder forward."""
        self.query.zero_grad(set_to_none=True)
        with devices.autocast(self.device):
            with torch.no_grad():
                self.key(key)
            features = self.query(query)
        features.sum().backward()


def lightly(arch: str, dim: int, queue: int, temperature: float, views: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """Return a step of MoCo v2 as in lightly's documentation, on the same backbone."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    resnet, device = backbones.build(arch), views[0].device
    width = backbones.width(resnet)
    query = nn.Sequential(resnet, MoCoProjectionHead(width, width, dim)).to(device).to(memory_format=torch.channels_last)
    key = copy.deepcopy(query).requires_grad_(False)
    criterion = NTXentLoss(temperature=temperature, memory_bank_size=(queue, dim)).to(device)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        update_momentum(query, key, m=0.999)
        with devices.autocast(device):
            q = query(views[0])
            with torch.no_grad():
                k = key(views[1])
            loss = criterion(q, k)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def similarity_loop(query_map: Tensor, key_map: Tensor) -> Tensor:
    """Compute s_l(p) sample by sample, as the authors' code does."""
    similarity = query_map.new_zeros(len(query_map), *query_map.shape[2:])
    for index in range(len(query_map)):
        similarity[index] = F.cosine_similarity(query_map[index], key_map[index], dim=0, eps=1e-6)
    return similarity


def similarity_torch(query_map: Tensor, key_map: Tensor) -> Tensor:
    """Compute s_l(p) with one call to torch."""
    return F.cosine_similarity(query_map, key_map, dim=1)


def albumentations_view(size: int) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Return an augmentation of one image (H, W, 1) with the operations, ranges and probabilities of the views `frequent`."""
    import albumentations as A

    views = PRESETS["frequent"]
    compose = A.Compose(
        [
            A.OneOf([A.GaussianBlur(blur_limit=augment.BLUR_KERNEL), A.Sharpen()], p=views.filter_probability),
            A.RandomBrightnessContrast(views.brightness, views.contrast, p=views.intensity_probability),
            A.GaussNoise(std_range=(0, views.noise), p=views.noise_probability),
            A.Affine(
                scale=(1 - views.scale, 1 + views.scale),
                translate_percent=(-views.shift, views.shift),
                rotate=(-views.rotation, views.rotation),
                p=views.geometry_probability,
            ),
            A.OpticalDistortion(distort_limit=views.distortion, p=views.distortion_probability),
        ],
        seed=0,
    )
    return lambda image: compose(image=image)["image"]
