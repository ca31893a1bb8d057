"""Gated PixelCNN: a distribution over maps of codes, each code given those before it in reading order.

    p(x) = prod_i p(x_i | x_1, ..., x_i-1, c)
    y = tanh(W_f * x + V_f c) sigmoid(W_g * x + V_g c)

(van den Oord et al. 2016, arXiv:1606.05328, eq. 1, 2 and 5). Two stacks of convolutions see what comes before: the
vertical one all rows above, whole, and the horizontal one its own row as far as its left, and the vertical stack. One
stack of masked kernels alone has a blind spot above to the right (Fig. 1). What a kernel must not see is not masked but
cut off: kernels reach only upwards and to the left, over a map that is padded there.

Legend: B batch, h w map size, K codes, D width, C channels of the condition, R reach of a kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class PixelCNNConfig:
    """Sizes of one level's network."""

    width: int = 96  # D
    layers: int = 8  # each lets a code know of R rows and columns more
    kernel: int = 3  # 2 R + 1, odd

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not at least 1")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is not an odd number of at least 3; try kernel=3")


class Above(nn.Conv2d):
    """A convolution over R rows above each position, and over its own unless ``strict``.

    (B, D, h, w) to (B, 2 D, h, w). It sees positions to the right, too, and so the first layer must be strict.
    """

    def __init__(self, width: int, kernel: int, *, strict: bool) -> None:
        self.reach = kernel // 2
        super().__init__(width, 2 * width, (self.reach + (not strict), kernel))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.reach, self.reach, self.reach, 0)))[:, :, : x.shape[2]]


class Left(nn.Conv2d):
    """A convolution over R positions to the left of each, and over itself unless ``strict``."""

    def __init__(self, width: int, kernel: int, *, strict: bool) -> None:
        self.reach = kernel // 2
        super().__init__(width, 2 * width, (1, self.reach + (not strict)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.reach, 0, 0, 0)))[..., : x.shape[3]]


class GatedLayer(nn.Module):
    """One layer of both stacks (Fig. 2); the first has no residual connection, which would show each code itself."""

    def __init__(self, width: int, kernel: int, *, first: bool, cond_channels: int) -> None:
        super().__init__()
        self.first = first
        self.above = Above(width, kernel, strict=first)
        self.left = Left(width, kernel, strict=first)
        self.across = nn.Conv2d(2 * width, 2 * width, 1)  # from the vertical stack to the horizontal one
        self.out = nn.Conv2d(width, width, 1)
        self.cond = nn.Conv2d(cond_channels, 4 * width, 1, bias=False) if cond_channels else None

    def down(self, vertical: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The vertical stack (B, D, h, w), given ``cond`` (B, C, h, w), and what it says to the horizontal one.

        The latter is (B, 2 D, h, w) and knows of the rows above each position, and of ``cond``.
        """
        above = self.above(vertical)  # (B, 2 D, h, w)
        message = self.across(above)  # (B, 2 D, h, w)
        if self.cond is not None:
            more_above, more_left = self.cond(cond).chunk(2, dim=1)
            above, message = above + more_above, message + more_left
        return gate(above), message

    def along(self, horizontal: Tensor, message: Tensor) -> Tensor:
        """The horizontal stack (B, D, h, w), given the vertical one's ``message`` (B, 2 D, h, w)."""
        made: Tensor = self.out(gate(self.left(horizontal) + message))  # (B, D, h, w)
        return made if self.first else horizontal + made


def gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other: (B, 2 D, h, w) to (B, D, h, w) (eq. 2)."""
    value, opening = x.chunk(2, dim=1)
    return value.tanh() * opening.sigmoid()


class PixelCNN(nn.Module):
    """Logits (B, K, h, w) of every code of a map (B, h, w), each from those above it and to its left alone.

    ``cond_channels`` are those of a map (B, C, h, w) that is known from the start; 0 for none.
    """

    def __init__(self, config: PixelCNNConfig, num_codes: int, cond_channels: int = 0) -> None:
        super().__init__()
        width = config.width
        self.num_codes = num_codes
        self.embed = nn.Embedding(num_codes, width)
        self.layers = nn.ModuleList(
            GatedLayer(width, config.kernel, first=i == 0, cond_channels=cond_channels) for i in range(config.layers)
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, num_codes, 1))

    def forward(self, codes: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.along(codes, self.down(codes, cond))

    def down(self, codes: Tensor, cond: Tensor | None = None) -> list[Tensor]:
        """What each layer's vertical stack says to its horizontal one, (B, 2 D, h, w), of the rows above each code."""
        vertical, messages = self._embedded(codes), []
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            vertical, message = layer.down(vertical, cond)
            messages.append(message)
        return messages

    def along(self, codes: Tensor, messages: list[Tensor]) -> Tensor:
        """The logits of rows of ``codes``, given what the vertical stacks say to them."""
        horizontal = self._embedded(codes)
        for layer, message in zip(self.layers, messages, strict=True):
            assert isinstance(layer, GatedLayer)
            horizontal = layer.along(horizontal, message)
        logits: Tensor = self.head(horizontal)  # (B, K, h, w)
        return logits

    def _embedded(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.embed(codes)
        return embedded.movedim(-1, 1)  # (B, D, h, w)


def nats(logits: Tensor, codes: Tensor) -> Tensor:
    """-log p of each code (B, h, w) under its logits (B, K, h, w)."""
    return F.cross_entropy(logits.float(), codes, reduction="none")


@torch.no_grad()
def draw(
    network: PixelCNN,
    size: tuple[int, int],
    generators: list[torch.Generator],
    *,
    cond: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """A map (B, h, w) of codes for each of B generators, drawn in reading order from p^(1 / temperature).

    A map's draws come from its own CPU generator, one uniform number for each code, so that a map does not depend on
    its batch, but for rounding that moves a bound between two codes past a number. Temperature 0 takes the most likely
    code each time.

    Raises:
        ValueError: the temperature is negative or not finite.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature {temperature} is not a finite number of at least 0; try temperature=1")
    height, width = size
    device = network.embed.weight.device
    uniform = torch.stack([torch.rand(size, generator=g, dtype=torch.float64) for g in generators])  # (B, h, w)
    codes = torch.zeros(len(generators), height, width, dtype=torch.long, device=device)
    for row in range(height):
        seen = cond[:, :, : row + 1] if cond is not None else None
        above = [message[:, :, row:] for message in network.down(codes[:, : row + 1], seen)]  # once a row
        for column in range(width):
            logits = network.along(codes[:, row : row + 1], above)[:, :, 0, column]  # (B, K)
            codes[:, row, column] = pick(logits, uniform[:, row, column].to(device), temperature)
    return codes


def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """The codes (B,) at which the distribution function of ``logits`` (B, K) passes ``uniform`` (B,)."""
    if temperature == 0:
        return logits.argmax(dim=1)
    heights = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)  # (B, K)
    place = torch.searchsorted(heights, uniform[:, None] * heights[:, -1:], right=True)  # (B, 1)
    return place[:, 0].clamp(max=logits.shape[1] - 1)
