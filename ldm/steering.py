"""Wishes besides the prompt: what else may change what a denoiser says. Each is a ``Steer`` for ``TextToImage``."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ldm.denoisers.classifier import Classifier, present
from ldm.diffusion.guidance import GuidanceConfig, autoguidance, classifier_guidance, composed, perpendicular
from ldm.diffusion.process import unit
from ldm.folders import check_same, latent_fingerprint
from ldm.pipeline import Steer, TextToImage
from ldm.types import Denoise, Grid, Level


def in_turn(steers: Sequence[Steer]) -> Steer:
    """All of ``steers``, each on what the one before it makes of the denoiser."""

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        for each in steers:
            denoise = each(denoise, prompts)
        return denoise

    return steer


def by_classifier(classifier: Classifier, scale: float, grid: Grid | None = None) -> Steer:
    """Towards latents in which ``classifier`` sees those of its words that the prompt says, and no others.

    log p(y | x) is that of the whole list y of which words stand in the caption, as it was trained. With the ``grid``
    that is walked over, the gradient moves the mean of a step of `ddpm` (``classifier_guidance``).
    """

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        said = present(prompts, classifier.words)  # (B, K)

        def log_prob(x: Tensor, level: Level) -> Tensor:
            t = torch.full((len(x),), float(level.t), device=x.device)
            logits = classifier(unit(x, level), t).float()  # (B, K)
            return -binary_cross_entropy_with_logits(logits, said.to(x.device), reduction="none").sum(dim=1)

        return classifier_guidance(denoise, log_prob, scale, grid)

    return steer


def towards(model: TextToImage, wishes: Sequence[tuple[float, str]]) -> Steer:
    """Towards further prompts beside ``model``'s own, each by a weight, below 0 away from it.

    Composed prompts (Liu et al. 2022, arXiv:2206.01714). ValueError where there are no ``wishes``.
    """
    if not wishes:
        raise ValueError("there is no prompt to go towards; give one or more (weight, prompt)")
    weights, texts = zip(*wishes, strict=True)

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        *conds, null = (model.condition([text]).repeat(len(prompts)) for text in (*texts, ""))
        return composed(denoise, model.denoiser, model.process, conds, weights, null)

    return steer


def away_from(model: TextToImage, negative: str, weight: float) -> Steer:
    """Away from what ``negative`` says and the prompt does not ask for: Perp-Neg (arXiv:2304.04968)."""

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        cond, unwanted, null = (model.condition(part) for part in (prompts, [negative], [""]))
        rows = unwanted.repeat(len(prompts)), null.repeat(len(prompts))
        return perpendicular(denoise, model.denoiser, model.process, cond, *rows, weight)

    return steer


def by_worse_model(model: TextToImage, worse: TextToImage, scale: float) -> Steer:
    """Away from what a ``worse`` model than ``model`` says of the same prompt: autoguidance, 1 is none.

    It comes on top of classifier-free guidance, which a scale of 1 turns off.

    Raises:
        ValueError: the worse model knows other latents or other noise levels.
    """
    check_same(model, latent_fingerprint(worse.autoencoder), worse.process.schedule, "the worse model")

    def steer(denoise: Denoise, prompts: list[str]) -> Denoise:
        null = worse.condition([""]).repeat(len(prompts))
        return autoguidance(denoise, worse.denoise(prompts, null, GuidanceConfig(scale=1.0)), scale)

    return steer
