"""A discriminator in training: what it makes a reconstruction pay, and what it learns from the same pictures."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm.autoencoders import AdversarialConfig
from ldm.autoencoders.losses import adaptive_weight, gradient_penalty, hinge
from ldm.training.optim import TrainConfig

BETAS = (0.5, 0.9)  # of its AdamW: a momentum as short as what it judges changes fast


class Adversary:
    """The loop's rival of an autoencoder: ``joined`` is called in the loss of the one, ``loss`` then for the other."""

    def __init__(self, config: AdversarialConfig, train: TrainConfig) -> None:
        """``train`` is the autoencoder's.

        Raises:
            ValueError: it asks for half precision with a loss scale, or for compiling, which know of one loss only.
        """
        if train.precision == "fp16":
            raise ValueError("precision fp16 scales one loss, and an adversary has a second; try precision=bf16")
        if train.compile:
            raise ValueError("compile true keeps no graph for adversarial.weight's two gradients; try compile=false")
        self.settings, self.network = config, config.build()
        self.begins = config.start - config.lead  # the step from which on it learns
        self.config = replace(
            train,
            steps=max(1, train.steps - self.begins),
            optimizer="adamw",
            lr=config.lr,
            betas=list(BETAS),
            weight_decay=0.0,
            clip=0.0,  # a penalty that counts for many steps is large on purpose
        )
        self._shown: tuple[int, Tensor, Tensor] | None = None  # step, images, reconstructions

    @property
    def period(self) -> int:
        """Every so many steps the gradient is penalised, where it is."""
        return self.settings.r1_every if self.settings.r1 else 1

    def joined(
        self, step: int, image: Tensor, decoded: Tensor, reconstruction: Tensor, last: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``reconstruction``, the loss () of ``decoded`` (B, 3, H, W), and what the discriminator says; and figures.

        Before the start that is ``reconstruction`` alone. ``last`` are the weights of the decoder's last layer, at
        which the two are weighed. No gradient reaches a weight of the discriminator. Both losses have gone backwards as
        far as ``decoded`` once this returns, and do not go there again: the gradient that weighed them is taken on.
        """
        if step >= self.begins:
            self._shown = (step, image, decoded.detach())
        if step < self.settings.start:
            return reconstruction, {}
        frozen = {name: weight.detach() for name, weight in self.network.named_parameters()}
        cost = -functional_call(self.network, frozen, (decoded,)).float().mean()
        pulls = [torch.autograd.grad(loss, decoded)[0] for loss in (reconstruction, cost)]  # (B, 3, H, W)
        at_last = (torch.autograd.grad(decoded, last, pull, retain_graph=True)[0] for pull in pulls)
        weight = adaptive_weight(*at_last)
        share = self.settings.weight * weight
        total = with_gradient(reconstruction + share * cost, decoded, pulls[0] + share * pulls[1])
        return total, {"adversarial": cost.detach(), "adaptive_weight": weight}

    def loss(self, network: nn.Module) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The discriminator's loss () on the pictures of the last ``joined``, and figures; None before it begins."""
        if self._shown is None:
            return None
        (step, image, decoded), self._shown = self._shown, None
        penalised = self.settings.r1 > 0 and (step + 1) % self.period == 0
        image = image.detach().requires_grad_(penalised)
        # both at once: wrapped for several processes, a network is called once before it goes backwards
        real, fake = network(torch.cat([image, decoded])).float().chunk(2)  # (B, 1, h, w)
        total = hinge(real, fake)
        figures = {"discriminator": total.detach(), "real": real.detach().mean(), "decoded": fake.detach().mean()}
        if penalised:
            penalty = gradient_penalty(image, real)
            total = total + self.settings.r1 * self.period * penalty
            figures["r1"] = penalty.detach()
        return total, figures


def with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """``value`` () whose derivative by ``x`` is ``gradient``, of the same shape."""
    along = (x * gradient).sum()
    return value.detach() + (along - along.detach())
