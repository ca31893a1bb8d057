"""What a measurement does to a picture: linear maps with their transposes and pseudo-inverses.

Legend: B batch, C channels, H W image size, f factor, m number of measurements.
"""

from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Protocol

import torch
from torch import Tensor, nn


class Operator(Protocol):
    """A linear map A of images (B, C, H, W), with its transpose and its Moore-Penrose pseudo-inverse A^+."""

    def apply(self, x: Tensor) -> Tensor:
        """A x."""
        ...

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y, so that <A x, y> = <x, A^T y>."""
        ...

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y: of all x with the least |A x - y| the smallest, so that A A^+ A = A."""
        ...


@dataclass(frozen=True)
class Masked:
    """Pixels hidden where ``mask`` (B or 1, 1, H, W) is 1 and seen where it is 0: inpainting. y is like x."""

    mask: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.mask.to(x.device) > 0, 0)

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.apply(y)

    @staticmethod
    def random(height: int, width: int, hidden: float, seed: int) -> "Masked":
        """A share ``hidden`` of an image's pixels, drawn from ``seed``."""
        draws = torch.rand(height * width, generator=torch.Generator().manual_seed(seed))
        mask = draws.argsort().argsort() < round(hidden * height * width)
        return Masked(mask.float().view(1, 1, height, width))


@dataclass(frozen=True)
class Downscale:
    """Means of squares of f x f pixels: super-resolution. y is (B, C, H / f, W / f)."""

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor {self.factor} is not at least 1; try factor=4")

    def apply(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"size {x.shape[2]}x{x.shape[3]} is not divisible by factor {self.factor}; crop the image")
        return nn.functional.avg_pool2d(x, self.factor)

    def transpose(self, y: Tensor) -> Tensor:
        return self.pseudo_inverse(y) / self.factor**2

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, dim=2).repeat_interleave(self.factor, dim=3)


class Blur:
    """Gaussian blur of images of one ``size`` (H, W); y is like x.

    It is one matrix for the rows and one for the columns, kept as their singular values and vectors. Products of two
    values below ``cutoff`` of the greatest are 0 in the operator itself: what a blur takes away, the pseudo-inverse
    would otherwise make of the rounding errors of y.
    """

    def __init__(self, std: float, size: tuple[int, int], *, padding: str = "reflect", cutoff: float = 0.01) -> None:
        """``std`` is in pixels; ``padding`` is "reflect" or "circular"."""
        most = (min(size) - 1) / 3  # three of them are reflected at the edges
        if not 0 < std <= most:
            told = floor(100 * most) / 100
            raise ValueError(f"std {std} is not above 0 and up to {told} at size {size}; try std={min(2.0, told)}")
        radius = ceil(3 * std)
        if padding not in ("reflect", "circular"):
            raise ValueError(f"padding '{padding}' is not one of reflect, circular")
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
        weights = (weights / weights.sum()).view(1, 1, -1)
        self.out, values, self.into = [], [], []  # of rows (H, H) and of columns (W, W)
        for side in size:
            basis = nn.functional.pad(torch.eye(side, dtype=torch.float64)[:, None], (radius, radius), mode=padding)
            u, s, vh = torch.linalg.svd(nn.functional.conv1d(basis, weights)[:, 0].T)
            self.out.append(u)
            values.append(s)
            self.into.append(vh)
        gains = torch.outer(*values)  # (H, W)
        kept = gains > cutoff * gains.max()
        self.gains = torch.where(kept, gains, 0)
        self.inverse_gains = torch.where(kept, 1 / gains, 0)

    def apply(self, x: Tensor) -> Tensor:
        return _separable(_separable(x, *self.into) * self.gains.to(x), *self.out)

    def transpose(self, y: Tensor) -> Tensor:
        return self._back(y, self.gains)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self._back(y, self.inverse_gains)

    def _back(self, y: Tensor, gains: Tensor) -> Tensor:
        spectrum = _separable(y, *(matrix.T for matrix in self.out)) * gains.to(y)  # (B, C, H, W)
        return _separable(spectrum, *(matrix.T for matrix in self.into))


class Projections:
    """``count`` random orthonormal projections of images of one ``shape`` (C, H, W): compressed sensing. y is (B, m).

    Random signs, the Hartley transform and a random choice of its coefficients, drawn from ``seed``: rows of a random
    orthogonal matrix that is never written down.
    """

    def __init__(self, shape: tuple[int, int, int], count: int, seed: int = 0) -> None:
        pixels = prod(shape)
        if not 1 <= count <= pixels:
            raise ValueError(
                f"count {count} is not from 1 to the image's {pixels} values; try count={max(1, pixels // 4)}"
            )
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.signs = 2.0 * torch.randint(2, (pixels,), generator=generator) - 1
        self.chosen = torch.randperm(pixels, generator=generator)[:count]

    def apply(self, x: Tensor) -> Tensor:
        return _hartley(x.flatten(1) * self.signs.to(x))[:, self.chosen.to(x.device)]

    def transpose(self, y: Tensor) -> Tensor:
        everything = y.new_zeros(len(y), len(self.signs))
        return (_hartley(everything.index_copy(1, self.chosen.to(y.device), y)) * self.signs.to(y)).view(
            -1, *self.shape
        )

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.transpose(y)


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows`` (H, H) on the columns of x (B, C, H, W) and ``columns`` (W, W) on its rows."""
    return rows.to(x) @ x @ columns.to(x).T


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal discrete Hartley transform of the last dimension, which is symmetric and its own inverse."""
    spectrum = torch.fft.fft(x, norm="ortho")
    return spectrum.real - spectrum.imag
