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
from ldm.autoencoders.tiles import tiled, tiles
from ldm.blocks import Upsample

Moments = tuple[Tensor, Tensor]  # mean and variance (G,) of the whole picture


def in_tiles(parts: nn.Sequential, x: Tensor, side: int) -> Tensor:
    """What ``parts`` make of one row ``x`` (1, C, H, W), tile by tile; float32.

    A tile has ``side`` places, of the input or the output, whichever is finer: of all ``parts``, or, where there are
    group norms, of each stretch of them. Whoever calls it sees to it that a tile holds some places of the coarser one.
    The result is that of the whole where convolutions look no farther than a sixteenth of a tile.
    """
    norms = any(isinstance(module, nn.GroupNorm) for module in parts.modules())
    pieces = stretches(parts) if norms else [parts]
    for piece in pieces:
        x = _over_tiles(piece, x, side)
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
    """How many places, along one side, become one, and how many one becomes; ``parts`` have no others inside."""
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


def _over_tiles(stretch: nn.Sequential, x: Tensor, side: int) -> Tensor:
    """What ``stretch`` makes of one row ``x`` (1, C, H, W), its norms having the moments of the whole of it."""
    shrink, grow = scale(stretch)
    places = side // max(shrink, grow)  # of the coarser side
    if max(x.shape[2:]) <= places * shrink:
        whole: Tensor = stretch(x).float()
        return whole
    known: dict[nn.GroupNorm, Moments] = {}
    with _normed_by(stretch, known) as norms:
        for _ in norms:
            norm, moments = _first_unknown(stretch, x, places, shrink, grow)
            known[norm] = moments
        return tiled(stretch, x, places, shrink=shrink, grow=grow)


class _Unknown(Exception):
    """A norm whose moments are not known, and what came to it."""

    def __init__(self, norm: nn.GroupNorm, x: Tensor) -> None:
        super().__init__()
        self.norm, self.x = norm, x


@contextmanager
def _normed_by(stretch: nn.Module, known: dict[nn.GroupNorm, Moments]) -> Iterator[list[nn.GroupNorm]]:
    """Within, the norms of ``stretch`` take the moments that are ``known``; the first of another raises _Unknown."""

    def normalise(norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
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
        yield norms
    finally:
        for hook in hooks:
            hook.remove()


def _first_unknown(stretch: nn.Module, x: Tensor, places: int, shrink: int, grow: int) -> tuple[nn.GroupNorm, Moments]:
    """The first norm of ``stretch`` that is not known, and the moments of all that comes to it."""
    found: list[tuple[nn.GroupNorm, Tensor]] = []
    for part in tiles(x.shape[2], x.shape[3], places, shrink=shrink, grow=grow):
        try:
            stretch(x[:, :, *part.source])
        except _Unknown as met:
            weights = part.weights.to(x.device).double()[None]
            weights = adaptive_avg_pool2d(weights, (met.x.shape[2], met.x.shape[3]))  # (1, h, w), 1 in all over tiles
            groups = rearrange(met.x, "1 (g c) h w -> g c h w", g=met.norm.num_groups)
            found.append((met.norm, torch.stack([_sums(group.double(), weights) for group in groups], dim=1)))  # (3, G)
    norm, _ = found[0]
    count, first, second = torch.stack([sums for _, sums in found]).sum(dim=0)  # (G,) each
    mean = first / count
    return norm, (mean.float(), (second / count - mean.square()).clamp(min=0).float())


def _sums(group: Tensor, weights: Tensor) -> Tensor:
    """How many places of one group (C / G, h, w) there are, and the sums of what is there and of its squares: (3,)."""
    return torch.stack([weights.sum() * len(group), (group * weights).sum(), (group.square() * weights).sum()])
