"""Pictures that agree with a measurement y: samples of p(x0 | y) from a denoiser of p(x0).

Legend: B batch, C channels, H W size of x.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.editing.operators import Operator
from ldm.gradients import differentiable
from ldm.types import Denoise, Level, Prediction

PROBE = 0.1  # root mean square of the change of x0 by which ``dps`` measures a slope


def same(x: Tensor) -> Tensor:
    """``x``: what decodes and encodes where there is no autoencoder."""
    return x


def ddnm(
    denoise: Denoise,
    operator: Operator,
    y: Tensor,
    *,
    decode: Callable[[Tensor], Tensor] = same,
    encode: Callable[[Tensor], Tensor] = same,
    passes: int = 1,
) -> Denoise:
    """Denoise with A x0 = y: x0 + A^+ (y - A x0) (Wang et al. 2022, arXiv:2212.00490, alg. 1).

    For a measurement ``y`` without noise. Samples are exact where x0 is white noise; elsewhere ``resampled`` as the
    sampler brings the rest of x0 nearer to what ``y`` implies. Where the denoiser denoises latents and ``operator``
    measures images, it is done to the decoded image, which is then encoded again: no longer quite consistent, and the
    nearer to it the more ``passes``. It needs no gradient, which through a decoder can lead nowhere.
    """
    if passes < 1:
        raise ValueError(f"passes {passes} is not at least 1; try passes=3")

    def consistent(x: Tensor, level: Level) -> Prediction:
        said = denoise(x, level)
        x0 = said.x0
        for _ in range(passes):
            image = decode(x0)
            with torch.autocast(image.device.type, enabled=False):  # half precision would not agree with y
                image = image + operator.pseudo_inverse(y - operator.apply(image))
            x0 = encode(image)
        return said._replace(x0=x0)

    return consistent


def dps(
    denoise: Denoise, measure: Callable[[Tensor], Tensor], y: Tensor, *, zeta: float = 1.0, std: float = 0.0
) -> Denoise:
    """Denoise towards x0 of which ``measure`` says ``y`` (Chung et al. 2022, arXiv:2209.14687, alg. 1).

    ``measure`` is any differentiable function of x0 (B, C, H, W), an operator's ``apply`` after a decoder say; ``y``
    (B, ...) has Gaussian noise of ``std``. As in the paper x follows the gradient of |y - measure(x0)|^2 through the
    denoiser, here as guidance by a classifier does: by sigma^2 / alpha times it on x0. The paper leaves the step's
    length to be set by hand for each task. Here it is the one that makes x0 likeliest given y, were ``measure`` linear
    and x0 Gaussian given x; ``zeta`` is the share of it that is taken, about 1. Samples are exact for a Gaussian x0 and
    one number y, or projections of white noise.

    A level costs an evaluation of the denoiser and of ``measure`` with their gradients, and two of ``measure`` alone.
    """
    if not zeta >= 0 or not std >= 0:
        raise ValueError(f"zeta {zeta} and std {std} must be numbers from 0; try zeta=1 and std=0.05")

    def towards(x: Tensor, level: Level) -> Prediction:
        with differentiable():
            leaf = x.detach().clone().requires_grad_()
            said = denoise(leaf, level)
            if level.blank:  # x says nothing of x0, and so has no gradient
                return _detached(said)
            residual = y - measure(said.x0)  # (B, ...)
            (slope,) = torch.autograd.grad(-0.5 * residual.square().sum(), leaf)
        with torch.no_grad():
            said = _detached(said)
            update = level.sigma**2 / level.alpha * slope  # the covariance of x0 given x, times the gradient on x0
            x0 = said.x0 + zeta * _step(update, said.x0, measure, residual.detach(), std) * update
        return said._replace(x0=x0)

    return towards


def _detached(said: Prediction) -> Prediction:
    return said._replace(**{name: part.detach() for name, part in said._asdict().items() if part is not None})


def _step(update: Tensor, x0: Tensor, measure: Callable[[Tensor], Tensor], residual: Tensor, std: float) -> Tensor:
    """The factor (B, 1, 1, 1) of ``update`` that maximises the posterior of x0 along it.

    With q what ``update`` changes in the measurement: the least of |residual - s q|^2 + s^2 std^2 <residual, q> over s.
    The last term, for ``update`` is a covariance times a gradient, is what p(x0 | x) has against the change.
    """
    probe = PROBE / update.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)  # (B, 1, 1, 1)
    change = (measure(x0 + probe * update) - measure(x0)).flatten(1) / probe.flatten(1)  # (B, m)
    gain = (residual.flatten(1) * change).sum(dim=1).clamp(min=0)  # (B,)
    cost = change.square().sum(dim=1) + std**2 * gain
    return (gain / cost.clamp(min=1e-30)).to(x0).view(-1, 1, 1, 1)
