"""What makes an encoder robust, in training alone: corrupted inputs, and a price on its sensitivity.

Legend: B batch, H W image size, C latent channels, h w latent size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class RobustnessConfig:
    """A denoising autoencoder (Vincent et al. 2010, JMLR 11) with ``noise`` or ``mask``, or a contractive one."""

    noise: float = 0.0  # std of normal noise on what the encoder is given, pixels in [-1, 1]
    mask: float = 0.0  # share of its pixels that are set to 0, mid-grey
    contractive: float = 0.0  # weight of the encoder's squared Jacobian norm, per image value

    def __post_init__(self) -> None:
        for name in ("noise", "contractive"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is not a finite number of at least 0; try {name}=0.1")
        if not 0 <= self.mask < 1:
            raise ValueError(f"mask {self.mask} is not in [0, 1), and nothing is left at 1; try mask=0.25")

    def corrupted(self, image: Tensor) -> Tensor:
        """``image`` (B, 3, H, W) with noise and then without some pixels, all channels of one at once.

        The loss compares with the image itself: E ||x - decode(encode(corrupted(x)))||^2.
        """
        if self.noise:
            image = image + self.noise * torch.randn_like(image)
        if self.mask:
            image = image * (torch.rand_like(image[:, :1]) >= self.mask)  # (B, 3, H, W)
        return image


def contraction(encode: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """An unbiased estimate () of the mean over ``image`` (B, 3, H, W) of ||J||_F^2, differentiable in the encoder.

    J = d encode(x) / dx, all latent values by all image values (Rifai et al. 2011, ICML, eq. 1). For v of independent
    standard normals ||J||_F^2 = E ||J^T v||^2, and one v is drawn for each image (Hoffman et al. 2019,
    arXiv:1908.02729, who draw v from the sphere). No image may change another's latent.
    """
    image = image.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast ones have no second derivative
        latent = encode(image)  # (B, C, h, w)
        (projected,) = torch.autograd.grad(latent, image, torch.randn_like(latent), create_graph=True)  # (B, 3, H, W)
    return projected.float().square().flatten(1).sum(dim=1).mean()
