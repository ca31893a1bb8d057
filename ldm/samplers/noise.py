"""Random draws that belong to an image, not to the batch it is made in.

Legend: B batch, C channels, H W height and width of a latent.
"""

import torch
from torch import Tensor


class ImageNoise:
    """Standard normal draws (B, C, H, W), row i from a CPU generator of its own, seeded ``seeds[i]``.

    An image so depends on its own seed alone: not on its batch, its place in it, or the device.
    """

    def __init__(self, seeds: list[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
