"""The losses of a discriminator and of what it judges.

Legend: B batch, h w patches that have a logit each, high for real ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.ranks import sum_over_ranks

EPS = 1e-6  # of a gradient's norm
MOST = 1e4  # that an adaptive weight may be


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss () of its logits: E[max(0, 1 - real)] + E[max(0, 1 + fake)].

    (Lim & Ye 2017, arXiv:1705.02894). What it judges pays -E[fake].
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def gradient_penalty(image: Tensor, logits: Tensor) -> Tensor:
    """1/2 E ||dD(x) / dx||^2 () at real images x (B, 3, H, W), D(x) the mean of the ``logits`` (B, 1, h, w) of x.

    Differentiable in the discriminator (R1, Mescheder et al. 2018, arXiv:1801.04406, eq. 9). ``image`` must have been
    told to keep its gradient before the logits were computed, and no image may change another's logits.
    """
    (gradient,) = torch.autograd.grad(logits.mean(dim=(1, 2, 3)).sum(), image, create_graph=True)  # (B, 3, H, W)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """The weight () at which both losses pull equally hard at the decoder's last layer, by their gradients there.

    ||reconstruction|| / (||adversarial|| + EPS), at most MOST (Esser et al. 2021, arXiv:2012.09841, eq. 7); 0 where
    neither pulls. Both are of the shape of that layer's weights, and over several processes those of all count.
    """
    wanted, found = (sum_over_ranks(gradient).norm() for gradient in (reconstruction, adversarial))
    return (wanted / (found + EPS)).clamp(max=MOST)
