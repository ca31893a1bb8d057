"""Networks with group norms on large pictures, tile by tile: every norm has the mean and variance of the whole picture.

A tile of its own has others, and would come out in another tone. So the network is cut where the size changes, and each
stretch goes over all tiles several times: until its first norm, whose sums are taken; with that known until its second;
and so on, and once more to the end. With n norms that is the work of n / 2 + 1 passes over the stretch. What lies
between two stretches is held whole.

Legend: C channels, G groups, H W size, h w size of a tile.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ldm.autoencoders.blocks import Downsample
from ldm.autoencoders.tiles import Tile, tiled, tiles
from ldm.blocks import Upsample

Moments = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # mean and variance (G,) of the whole picture


def in_tiles(parts: nn.Sequential, x: Tensor, tile: int) -> Tensor:
    """What ``parts`` make of ``x`` (B, C, H, W), by tiles of at most ``tile`` places on the finer side; float32.

    That is the result for the whole where what is not a norm looks no farther than a sixteenth of a tile: in a stretch,
    or, where there are no group norms, in all of it.
    """
    if not any(isinstance(module, nn.GroupNorm) for module in parts.modules()):
        shrink, grow = scale(parts)
        return tiled(parts, x, tile // max(shrink, grow), shrink=shrink, grow=grow)
    for stretch in stretches(parts):
        x = torch.cat([_with_whole_norms(stretch, one, tile) for one in x.split(1)])
    return x


def stretches(parts: Iterable[nn.Module]) -> list[nn.Sequential]:
    """``parts`` in order, cut so that an Upsample begins a stretch and a Downsample ends one."""
    runs: list[list[nn.Module]] = [[]]
    for part in parts:
        if isinstance(part, Upsample):
            runs.append([])
        runs[-1].append(part)
        if isinstance(part, Downsample):
            runs.append([])
    return [nn.Sequential(*run) for run in runs if run]


def scale(parts: Iterable[nn.Module]) -> tuple[int, int]:
    """How many places, along one side, become one; and how many one becomes."""
    shrink = grow = 1
    for part in parts:
        if isinstance(part, Downsample):
            shrink *= 2
        elif isinstance(part, Upsample):
            grow *= 2
        elif isinstance(part, nn.PixelUnshuffle):
            shrink *= part.downscale_factor
        elif isinstance(part, nn.PixelShuffle):
            grow *= part.upscale_factor
    return shrink, grow


def _with_whole_norms(stretch: nn.Sequential, x: Tensor, tile: int) -> Tensor:
    """What ``stretch`` makes of one row ``x`` (1, C, H, W)."""
    shrink, grow = scale(stretch)
    height, width = (side // shrink for side in x.shape[2:])
    every = [*tiles(height, width, tile // max(shrink, grow), shrink=shrink, grow=grow, device=x.device)]
    if len(every) == 1:
        return stretch(x).float()
    known: Moments = {}
    with _norms_of(stretch, known):
        while True:
            try:
                return tiled(stretch, x, tile // max(shrink, grow), shrink=shrink, grow=grow)
            except _Unknown as met:  # all tiles come to the same norm first
                norm = met.norm
            known[norm] = _moments(stretch, x, every)


class _Unknown(Exception):
    """A norm whose moments are not known, and what came to it."""

    def __init__(self, norm: nn.GroupNorm, x: Tensor) -> None:
        super().__init__()
        self.norm, self.x = norm, x


@contextmanager
def _norms_of(stretch: nn.Module, known: Moments) -> Iterator[None]:
    """Within, the norms of ``stretch`` take the moments that are ``known``; the first of another raises _Unknown."""

    def normalise(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(norm, nn.GroupNorm)
        if norm not in known:
            raise _Unknown(norm, inputs[0])
        mean, variance = known[norm]
        each = norm.num_channels // norm.num_groups
        gain = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(each)  # (C,)
        offset = norm.bias - mean.repeat_interleave(each) * gain
        return (inputs[0].float() * gain[:, None, None] + offset[:, None, None]).to(output.dtype)

    norms = [module for module in stretch.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_hook(normalise) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _moments(stretch: nn.Module, x: Tensor, every: list[Tile]) -> tuple[Tensor, Tensor]:
    """Mean and variance (G,), over the whole picture, of what comes to the first norm of ``stretch`` not known."""
    sums = torch.zeros(3, 1, dtype=torch.float64)
    for tile in every:
        try:
            stretch(x[:, :, *tile.source])
        except _Unknown as met:
            grouped = rearrange(met.x.float(), "1 (g c) h w -> g c h w", g=met.norm.num_groups)
            weights = adaptive_avg_pool2d(
                tile.weights[None], (met.x.shape[2], met.x.shape[3])
            )  # (1, h, w), of sum 1 over all tiles
            first, second = ((power * weights).mean(dim=1).sum(dim=(1, 2)) for power in (grouped, grouped.square()))
            sums = sums + torch.stack([first, second, weights.sum().expand_as(first)]).cpu().double()  # (3, G)
    mean, square = (sums[:2] / sums[2]).float().to(x.device)
    return mean, (square - mean.square()).clamp(min=0)
