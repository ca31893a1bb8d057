"""A few transformer blocks over the text's tokens, trained with the denoiser, before the image attends to them.

A text encoder trained on whole captions need not tell which word belongs to which: "a red star and a blue ring" and "a
blue star and a red ring" are nearly the same to it. The denoiser must know, and what it needs of the text the blocks
learn. They run once per prompt, not once per step of a sampler. Kong et al. 2024 (arXiv:2412.03603, Sec. 4.2) refine
the tokens of a causal language model so.

Legend: B batch, L text tokens, T text width.
"""

from torch import Tensor, nn

from ldm.blocks import zero
from ldm.denoisers.attention import SelfAttention

HEAD_WIDTH = 64


class RefinerBlock(nn.Module):
    """Self-attention of the tokens and an MLP, each on a norm and added; at the start both add nothing."""

    def __init__(self, width: int, *, qk_norm: bool, backend: str) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, width // HEAD_WIDTH), 0, -1) if width % h == 0)
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, bias=True, qk_norm=qk_norm, backend=backend)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        for last in (self.attention.out, self.mlp[-1]):
            assert isinstance(last, nn.Linear)
            zero(last)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, L, T) to as many; ``mask`` (B, 1, 1, L) bool is False for padding, which nothing attends to."""
        tokens = tokens + self.attention(self.norm1(tokens), mask)
        return tokens + self.mlp(self.norm2(tokens))


class TextRefiner(nn.Module):
    """``depth`` blocks in a row; none of them is the identity."""

    def __init__(self, width: int, depth: int, *, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(width, qk_norm=qk_norm, backend=backend) for _ in range(depth))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens  # (B, L, T)
