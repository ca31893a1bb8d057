"""Vector quantisation: each position's latent is the nearest code of a learned codebook.

    z = e_k, k = argmin_i ||h - e_i||, with the gradient of h
    penalty = ||sg(h) - e_k||^2 + commitment ||h - sg(e_k)||^2

(van den Oord et al. 2017, arXiv:1711.00937, eq. 1 to 3), means over all values; sg stops the gradient. With ``ema`` the
codebook has no gradient and so no first term: it follows the mean of the vectors that chose each code (App. A.1).

Legend: B batch, C latent channels, h w latent size, K codes, N = B h w vectors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoders.bottlenecks.base import Bottleneck, BottleneckConfig, Code, Quantizer, straight_through, usage
from ldm.autoencoders.bottlenecks.clusters import k_means, nearest, pick, smoothed, tally
from ldm.ranks import finite_everywhere, rows_of_ranks, told_by_first_rank


@dataclass
class VQConfig(BottleneckConfig):
    """A codebook, of which more are used where the latent has few channels, such as 8 (Yu et al. 2022)."""

    TRAINED_BY: ClassVar = ("commitment", "ema", "decay", "revive", "kmeans")

    codes: int = 1_024  # K
    cosine: bool = False  # latents and codes on the unit sphere, where the nearest is that of the least angle
    commitment: float = 0.25  # weight of what draws the encoder's outputs to their codes
    ema: bool = True  # codes follow a moving average of their vectors; without it, the gradient
    decay: float = 0.99  # a batch, of the moving averages of the codes and of their use
    revive: float = 0.1  # of an even use: a code used less is replaced by a vector of the batch; 0 for never
    kmeans: int = 10  # steps of k-means on the first batch, for the first codebook; 0 takes some of its vectors

    def __post_init__(self) -> None:
        if self.codes < 2:
            raise ValueError(f"codes {self.codes} are not at least 2; try codes=1024")
        if not 0 <= self.commitment < float("inf"):
            raise ValueError(f"commitment {self.commitment} is not a finite number of at least 0; try commitment=0.25")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay {self.decay} is not in [0, 1); try decay=0.99")
        if not 0 <= self.revive < 1:
            raise ValueError(f"revive {self.revive} is not in [0, 1): no code can be used more; try revive=0.1")
        if self.kmeans < 0:
            raise ValueError(f"kmeans {self.kmeans} is not at least 0; try kmeans=10")

    def build(self, channels: int) -> Bottleneck:
        return VectorQuantizer(channels, self)


class VectorQuantizer(Quantizer):
    """A forward pass in training mode also starts the codebook, moves it (``ema``) and replaces codes out of use.

    ``cosine`` is the look-up of Yu et al. 2022, arXiv:2110.04627, Sec. 3.2, whose projection to few dimensions here is
    the encoder's last convolution, and the one back the decoder's first.
    """

    codebook: Tensor  # (K, C); with ``cosine`` only its directions count
    uses: Tensor  # (K,) moving average of how often each is used, 1 where all are used evenly
    started: Tensor
    replaced: Tensor  # (K,) since ``Trainer`` last asked: such a code is not the mean of what it was and is

    def __init__(self, channels: int, config: VQConfig) -> None:
        super().__init__()
        self.features, self.num_codes, self.config = channels, config.codes, config
        book = torch.randn(config.codes, channels)
        if config.ema:
            self.register_buffer("codebook", book)
        else:
            self.codebook = nn.Parameter(book)
        self.register_buffer("uses", torch.ones(config.codes))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("replaced", torch.zeros(config.codes, dtype=torch.bool), persistent=False)

    def forward(self, h: Tensor, pixels: int) -> Code:
        """The nearest codes with the gradient of ``h``, and the two terms of the loss; ``pixels`` does not matter."""
        x = self.mode(h)  # (B, C, h, w)
        vectors = rearrange(x.detach(), "b c h w -> (b h w) c")
        learns = self.training and finite_everywhere(vectors)  # or the step is skipped, and must leave no trace
        if learns:
            self._renew(vectors)
        indices = self.codes(h)  # (B, h, w)
        code = self.from_codes(indices)  # (B, C, h, w)
        penalty = self.config.commitment * F.mse_loss(x, code.detach())
        if not self.config.ema:
            penalty = penalty + F.mse_loss(code, x.detach())
        if learns:
            self._count(vectors, indices.flatten())
        return Code(straight_through(x, code), penalty, usage(rows_of_ranks(indices), self.num_codes))

    def mode(self, h: Tensor) -> Tensor:
        return F.normalize(h.float(), dim=1) if self.config.cosine else h.float()

    def quantize(self, z: Tensor) -> Tensor:
        return straight_through(self.mode(z), self.from_codes(self.codes(z)))

    def codes(self, h: Tensor) -> Tensor:
        return nearest(self.mode(h).movedim(1, -1), self.book)

    def from_codes(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.book).movedim(-1, 1)

    @property
    def book(self) -> Tensor:
        """The codes (K, C) as they are looked up."""
        return F.normalize(self.codebook, dim=1) if self.config.cosine else self.codebook

    @torch.no_grad()
    def _renew(self, vectors: Tensor) -> None:
        """Start the codebook from ``vectors`` (N, C), or put some of them where codes are out of use.

        Of several processes from the vectors of all, as the first one draws.
        """
        if not self.started:
            book = k_means(rows_of_ranks(vectors), self.num_codes, self.config.kmeans)
            self.codebook.copy_(told_by_first_rank(book))
            self.started.fill_(True)
            self.replaced.fill_(True)
            return
        dead = self.uses < self.config.revive  # the same on all ranks
        if dead.any():
            self.codebook[dead] = told_by_first_rank(pick(rows_of_ranks(vectors), int(dead.sum())))
            self.uses[dead] = 1.0
            self.replaced |= dead

    @torch.no_grad()
    def _count(self, vectors: Tensor, indices: Tensor) -> None:
        """Follow the use of the codes and, with ``ema``, the mean of their vectors.

        With n_i vectors x_ij nearest to code e_i, N_i = decay N_i + (1 - decay) n_i,
        m_i = decay m_i + (1 - decay) sum_j x_ij and e_i = m_i / N_i. Here N_i is ``uses``, which counts n_i in units of
        N / K, and m_i is not kept: it is N_i e_i. A code that no vector chose stays where it is.
        """
        decay = self.config.decay
        counts, sums = tally(vectors, indices, self.num_codes)  # (K,), (K, C)
        even = counts.sum() / self.num_codes
        uses = decay * self.uses + (1 - decay) * counts / even
        if self.config.ema:
            moments = decay * smoothed(self.uses) * self.codebook.T + (1 - decay) * sums.T / even  # (C, K)
            self.codebook.copy_(torch.where(counts[:, None] > 0, (moments / smoothed(uses)).T, self.codebook))
        self.uses.copy_(uses)
