import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from components.invert.image_quality import ms_ssim, mse, psnr, scales, ssim

Pair = tuple[torch.Tensor, torch.Tensor]
OPTIONS = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.fixture(params=[0.02, 0.3])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Smooth images and noisy copies of them, in double precision."""
    rng = np.random.default_rng(0)
    smooth = F.interpolate(torch.from_numpy(rng.random((3, 1, 7, 7))), (64, 64), mode="bicubic").clamp(0, 1)
    noisy = smooth + request.param * torch.from_numpy(rng.normal(size=(3, 1, 64, 64)))
    return smooth, noisy.clamp(0, 1)


def test_pixel_errors_agree_with_scikit_image(pair: Pair) -> None:
    for index, (a, b) in enumerate(zip(*(image[:, 0].numpy() for image in pair), strict=True)):
        assert float(mse(*pair)[index]) == pytest.approx(mean_squared_error(a, b), rel=1e-9)
        assert float(psnr(*pair)[index]) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), rel=1e-9)


def test_structural_similarity_agrees_with_scikit_image(pair: Pair) -> None:
    for index, (a, b) in enumerate(zip(*(image[:, 0].numpy() for image in pair), strict=True)):
        assert float(ssim(*pair)[index]) == pytest.approx(structural_similarity(a, b, **OPTIONS), rel=1e-9)


def test_multi_scale_similarity_follows_the_formula(pair: Pair) -> None:
    """Three scales of a 64 px image by scikit-image: contrast and structure at the finer two, full SSIM at the coarsest."""
    weights = np.array([0.0448, 0.2856, 0.3001]) / (0.0448 + 0.2856 + 0.3001)
    for index, (a, b) in enumerate(zip(*(image[:, 0].numpy() for image in pair), strict=True)):
        value = 1.0
        for scale, weight in enumerate(weights):
            whole = structural_similarity(a, b, **OPTIONS)
            value *= (whole if scale == 2 else contrast_structure(a, b)) ** weight
            a, b = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (a, b))
        assert float(ms_ssim(*pair)[index]) == pytest.approx(value, rel=1e-6)


def contrast_structure(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean of contrast times structure: SSIM with K1 so large that the luminance term is 1."""
    return float(structural_similarity(a, b, K1=1e6, **OPTIONS))


def test_identical_images_have_maximal_similarity() -> None:
    image = torch.rand(2, 1, 32, 32)
    assert ssim(image, image).tolist() == pytest.approx([1, 1])
    assert ms_ssim(image, image).tolist() == pytest.approx([1, 1])
    assert psnr(image, image).tolist() == pytest.approx([100, 100])


def test_inverted_images_have_similarity_zero_instead_of_nan() -> None:
    image = torch.rand(2, 1, 64, 64)
    assert ms_ssim(image, 1 - image).tolist() == [0, 0]


def test_small_images_have_fewer_scales() -> None:
    assert [scales(size) for size in (16, 32, 64, 128, 256, 1024)] == [1, 2, 3, 4, 5, 5]
