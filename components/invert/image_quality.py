"""Full-reference image quality: MSE, PSNR, SSIM and MS-SSIM. All images are (B, 1, H, W) in [0, 1], all results (B,)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of the Gaussian window of SSIM in pixels (Wang et al. 2004, doi 10.1109/TIP.2003.819861, section III.B)."""
C1, C2 = 0.01**2, 0.03**2  # constants of SSIM, for a range of 1
LEAST_MSE = 1e-10
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM from the finest scale to the coarsest (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216, section 3.2)."""


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error."""
    return (a - b).square().mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, for a range of 1; 100 for equal images, so that means are finite."""
    return -10 * mse(a, b).clamp_min(LEAST_MSE).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, equation 13), averaged over the positions where the window fits."""
    luminance, contrast_structure = _terms(a, b)
    return (luminance * contrast_structure).mean((1, 2, 3))


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003, equation 7), over `scales(H)` scales.

    The paper's five scales need images of 176 pixels. Smaller images use fewer, with their weights rescaled to sum to 1, so values
    cannot be compared between image sizes. Negative means over an image count as 0.
    """
    weights = torch.tensor(SCALE_WEIGHTS[: scales(a.shape[-1])], device=a.device)
    weights = weights / weights.sum()
    result = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(weights):
        luminance, contrast_structure = _terms(a, b)
        last = scale == len(weights) - 1
        term = luminance * contrast_structure if last else contrast_structure
        result = result * term.mean((1, 2, 3)).clamp_min(0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result


def scales(size: int) -> int:
    """Number of scales, at most five, at which the window fits into an image of this side."""
    return next((count for count in range(1, len(SCALE_WEIGHTS)) if size // 2**count < WINDOW), len(SCALE_WEIGHTS))


def _terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance (Wang et al. 2004, equation 6) and contrast times structure (equations 9 and 10, C3 = C2 / 2) at each position."""
    mean_a, mean_b, square_a, square_b, product = (_local_mean(x) for x in (a, b, a * a, b * b, a * b))
    variance_a, variance_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance, (2 * covariance + C2) / (variance_a + variance_b + C2)


def _local_mean(x: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    taps = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(x, taps[None, None, None, :]), taps[None, None, :, None])
