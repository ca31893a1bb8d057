"""How much a reconstruction loses: PSNR, and on the package lpips LPIPS.

Legend: B batch, H W image size.
"""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.autoencoders.losses.reconstruction import LPIPS_SIDE
from ldm.autoencoders.losses.reconstruction import backbone as backbone_of
from ldm.evaluation.weights import eval_extra, find_weights, fitting
from ldm.text.weights import read_weights


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,) of images (B, 3, H, W) in [-1, 1]: 10 log10(2^2 / mean squared error)."""
    return 10 * torch.log10(4 / (images - reference).square().mean(dim=(1, 2, 3)))


class Lpips(nn.Module):
    """Perceptual distance (B,) of images (B, 3, H, W) in [-1, 1]: LPIPS 0.1 (Zhang et al. 2018, arXiv:1801.03924).

    Its weights are frozen, and ``option`` is what names their file. Gradients go on into the images.

    Raises:
        MissingWeights: ``weights`` is no file or, where it is left out, torch's hub cache has none.
        ValueError: the backbone is unknown, the file holds another, or lpips is not installed.
    """

    def __init__(self, weights: Path | None = None, backbone: str = "alex", *, option: str = "--lpips") -> None:
        from torchvision.models import get_model_weights

        with eval_extra():
            from lpips import LPIPS
        super().__init__()
        name = backbone_of(backbone)
        url = get_model_weights(name)["DEFAULT"].url
        path = find_weights(weights, url, option)
        held = read_weights(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a way that has become old
            self.network = LPIPS(net=backbone, pnet_rand=True, verbose=False).requires_grad_(False)
        backbone_keys = {key: re.sub(r"^slice\d+", "features", key) for key in self.network.net.state_dict()}
        with fitting(path, name):
            self.network.net.load_state_dict({key: held[name] for key, name in backbone_keys.items()})

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        if min(images.shape[2:]) < LPIPS_SIDE:
            size = f"{images.shape[3]} x {images.shape[2]}"
            raise ValueError(f"images of {size} pixels: LPIPS needs sides of at least {LPIPS_SIDE}")
        found: Tensor = self.network(images, reference)  # (B, 1, 1, 1)
        return found.flatten()
