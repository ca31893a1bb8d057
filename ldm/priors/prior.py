"""The distribution of all the codes of a picture: a PixelCNN for each level, each given the level above it.

    p(top, bottom) = p(top) p(bottom | top)

(Razavi et al. 2019, arXiv:1906.00446, Sec. 3.2, whose priors also have attention).

Legend: B batch, h w size of a level's map, K codes of a level, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.priors.pixelcnn import PixelCNN, PixelCNNConfig, draw

MAX_CODES = 65_536  # of a level, each with its own row of the tables at both ends


@dataclass
class PriorConfig(PixelCNNConfig):
    """Sizes of the networks, the same at every level, and how many pictures they learn from."""

    pictures: int = 20_000  # of the training set, at most, whose codes are learned: taken once and kept in memory

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 1:
            raise ValueError(f"pictures {self.pictures} is not at least 1; try pictures=20000")

    def build(self, num_codes: tuple[int, ...]) -> "CodePrior":
        """The prior of levels of so many codes, the coarsest first."""
        if max(num_codes) > MAX_CODES:
            raise ValueError(
                f"{max(num_codes):,} codes are more than the {MAX_CODES:,} that a prior tells apart; "
                "train a first stage of fewer, such as bottleneck=vq or bottleneck=fsq with levels=[8,5,5,5]"
            )
        return CodePrior(self, num_codes)


class CodePrior(nn.Module):
    """Logits for each level's map of codes."""

    def __init__(self, config: PixelCNNConfig, num_codes: tuple[int, ...]) -> None:
        super().__init__()
        coarser = (0, *num_codes)
        self.levels = nn.ModuleList(
            PixelCNN(config, codes, config.width if above else 0)
            for codes, above in zip(num_codes, coarser, strict=False)
        )
        self.contexts = nn.ModuleList(Context(above, config.width) for above in num_codes[:-1])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Logits (B, K, h, w) of each of ``maps`` (B, h, w), the coarsest first; all levels at once."""
        conds = [None, *(self._context(i, above, maps[i + 1].shape) for i, above in enumerate(maps[:-1]))]
        return [level(codes, cond) for level, codes, cond in zip(self.levels, maps, conds, strict=True)]

    @torch.no_grad()
    def draw(self, sizes: list[tuple[int, int]], seeds: list[int], *, temperature: float = 1.0) -> list[Tensor]:
        """Maps (B, h, w) of each level's size, row i of all levels drawn from ``seeds[i]`` alone (see ``pixelcnn``)."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        maps: list[Tensor] = []
        for i, (level, size) in enumerate(zip(self.levels, sizes, strict=True)):
            cond = self._context(i - 1, maps[-1], (len(seeds), *size)) if maps else None
            assert isinstance(level, PixelCNN)
            maps.append(draw(level, size, generators, cond=cond, temperature=temperature))
        return maps

    def _context(self, i: int, above: Tensor, shape: tuple[int, ...]) -> Tensor:
        cond: Tensor = self.contexts[i](above, shape[1:])
        return cond


class Context(nn.Module):
    """What a level is told of the codes above it: (B, h / 2, w / 2) numbers, rounded up, as (B, D, h, w)."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_codes, width)
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, above: Tensor, size: tuple[int, int]) -> Tensor:
        known = self.embed(above).movedim(-1, 1)  # (B, D, h / 2, w / 2)
        known = F.interpolate(known, scale_factor=2.0, mode="nearest")[:, :, : size[0], : size[1]]
        return self.mix(known)
