"""How alike two images are in structure, at one scale or several: SSIM and MS-SSIM, which need no trained weights.

Legend: B batch, H W image size, h w size of what a window sees.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SHARES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of the scales, the finest first
WINDOW, STD = 11, 1.5  # pixels, of the Gaussian window
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of a range of 2: they keep flat patches from 0 / 0
LEAST = 1e-3  # a power of less than this, which may be negative, has no or a huge gradient


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,), 1 for the same, of images (B, 3, H, W) in [-1, 1] (Wang et al. 2004, IEEE TIP 13(4)).

    The mean over all windows of 11 pixels, the images mirrored at their edges; float64, for variances are differences
    of large sums: in single precision a plain picture would differ from itself. Means are compared by their ratio, so
    pixels count from black, in [0, 2].

    Raises:
        ValueError: a side is not larger than half the window.
    """
    reach = WINDOW // 2
    if min(images.shape[2:]) <= reach:
        size = f"{images.shape[3]} x {images.shape[2]}"
        raise ValueError(f"images of {size} pixels: SSIM needs sides of at least {reach + 1}")
    mirrored = (F.pad(each.double() + 1, [reach] * 4, mode="reflect") for each in (images, reference))
    luminance, contrast = _compared(*mirrored)  # (B, 3, H, W)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def ms_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity (B,), 1 for the same, of float32 images (B, 3, H, W) in [-1, 1].

    The product of contrast and structure at each of up to five scales, each of half the size, to the powers ``SHARES``,
    and of the luminance at the last (Wang, Simoncelli & Bovik 2003, Asilomar, eq. 7). A small image has as many scales
    as hold a window, and their powers are divided by their sum. Means are compared by their ratio, so pixels count from
    black, in [0, 2]. What falls below 0.001 counts as that.

    Raises:
        ValueError: a side is smaller than the window.
    """
    scales = num_scales(images.shape[2], images.shape[3])
    x, y = images + 1, reference + 1
    product = torch.ones(len(x), device=x.device)
    for scale, share in enumerate(SHARES[:scales]):
        luminance, contrast = _compared(x, y)  # (B, 3, h, w)
        alike = luminance * contrast if scale == scales - 1 else contrast
        product = product * alike.mean(dim=(1, 2, 3)).clamp(min=LEAST) ** (share / sum(SHARES[:scales]))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def num_scales(height: int, width: int) -> int:
    """How many times, up to five, an image may be halved before a window does not fit, its own size counted."""
    fitting = sum(min(height, width) // 2**scale >= WINDOW for scale in range(len(SHARES)))
    if not fitting:
        raise ValueError(f"images of {width} x {height} pixels: MS-SSIM needs sides of at least {WINDOW}")
    return fitting


def _compared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of every window that lies inside: (B, 3, h, w) each.

    (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1) and (2 s_xy + C2) / (s_x^2 + s_y^2 + C2), m means, s^2 variances and s_xy
    the covariance under the window (Wang et al. 2004, IEEE TIP 13(4), eq. 6, 9, 10 and 13).
    """
    mean_x, mean_y, square_x, square_y, both = _windowed(torch.stack([x, y, x * x, y * y, x * y]))
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    covariance, variances = both - mean_x * mean_y, square_x + square_y - mean_x**2 - mean_y**2
    return luminance, (2 * covariance + C2) / (variances + C2)


def _windowed(x: Tensor) -> Tensor:
    """``x`` (..., H, W) averaged with the Gaussian window wherever it lies inside: (..., H - 10, W - 10)."""
    place = torch.arange(WINDOW, device=x.device) - WINDOW // 2
    window = (-(place**2) / (2 * STD**2)).exp()
    window = (window / window.sum()).to(x.dtype)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])
