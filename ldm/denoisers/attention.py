"""Multi-head attention: one function with a choice of kernels, and the two layers that both networks are made of.

Legend: B batch, N image tokens, L text tokens (or any keys), D width, T text width, h heads, d = D / h head width.
"""

import warnings
from functools import cache

import torch
from einops import rearrange
from torch import Tensor, nn

BACKENDS = ("auto", "sdpa", "xformers", "math")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, h, N, d), in v's dtype (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    ``q`` is (B, h, N, d), ``k`` and ``v`` are (B, h, L, d); ``mask`` is bool, broadcastable to (B, h, N, L), True where
    a query may attend; every query needs at least one key. ``backend`` is one of ``BACKENDS``: "sdpa" is PyTorch's
    fused kernel, "xformers" that library's (or "sdpa", with a warning, where it does not run), "math" plain matrix
    products, and "auto" the faster of "sdpa" and "math".
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may return float32
    if backend == "auto":
        backend = _fastest(q, k)
    if backend == "xformers" and _xformers_runs(q.device, q.dtype, q.shape[-1]):
        return _xformers(q, k, v, mask)
    if backend == "math":
        return _math(q, k, v, mask)
    return nn.functional.scaled_dot_product_attention(q, k, v, mask)


def _fastest(q: Tensor, k: Tensor) -> str:
    """The faster kernel, as benchmarks/attention.py measures it: sdpa, but in training on short rows in bfloat16.

    On two cores with AVX-512 BF16, forward and backward, sdpa takes 3.6 times as long as math in bfloat16 for 64 rows
    of 64 tokens, 1.4 times for 16 of 256, 2.0 times for 4 of 512, and 0.9 times for 2 of 1024; in float32 it is the
    faster one at every length. Without a gradient it takes 0.6 to 0.7 of math's time in bfloat16, on one with AMX.
    """
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 512
    return "math" if short and torch.is_grad_enabled() else "sdpa"


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, h, N, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).to(v.dtype) @ v  # (B, h, N, d)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        rows, heads, queries, keys = *q.shape[:3], k.shape[2]
        mask = mask[(None,) * (4 - mask.ndim)]
        # The kernel wants the bias of every pair, in rows that begin at multiples of 8 elements.
        bias = q.new_zeros(*mask.shape[:3], -(-keys // 8) * 8)[..., :keys]
        bias = bias.masked_fill_(~mask, -torch.inf).expand(rows, heads, queries, keys)  # (B, h, N, L)
    q, k, v = (rearrange(part, "b h n d -> b n h d") for part in (q, k, v))
    return rearrange(memory_efficient_attention(q, k, v, attn_bias=bias), "b n h d -> b h n d")


@cache
def _xformers_runs(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether xformers attends on ``device``, with and without a mask.

    Its wheel is built for one version of torch and has no CPU kernels; in half precision it wants heads of a ``width``
    that is a multiple of 8.
    """
    try:
        one = torch.zeros(1, 1, 8, width, device=device, dtype=dtype)
        for mask in (None, torch.ones(1, 8, device=device, dtype=torch.bool)):
            _xformers(one, one, one, mask)
    except (ImportError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        heads = f"for heads of {width} in {str(dtype).removeprefix('torch.')}"
        warnings.warn(f"xformers does not run on {device}: {reason}; using sdpa attention {heads}", stacklevel=2)
        return False
    return True


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight in x's dtype: PyTorch's fused kernel refuses a weight of another dtype, as under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Tokens attend to one another: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int, *, bias: bool, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)  # 3 (B, h, N, d)
        x = attention(self.q_norm(q), self.k_norm(k), v, mask, self.backend)  # (B, h, N, d)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))  # (B, N, D)


class CrossAttention(nn.Module):
    """Image tokens (B, N, D) attend to the keys and values (B, h, L, d) that ``KeysValues`` made of the text."""

    def __init__(self, width: int, heads: int, *, bias: bool, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.backend = backend
        self.q = nn.Linear(width, width, bias=bias)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        q = self.q_norm(rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads))  # (B, h, N, d)
        x = attention(q, keys, values, mask, self.backend)  # (B, h, N, d)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))  # (B, N, D)


class KeysValues(nn.Module):
    """Text tokens (B, L, T) -> keys and values (B, h, L, d) of one cross-attention.

    It lies apart from its ``CrossAttention`` because a prompt needs it once and an image at every step.
    """

    def __init__(self, text_width: int, width: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(text_width, 2 * width, bias=bias)
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        k, v = rearrange(self.kv(text), "b l (two h d) -> two b h l d", two=2, h=self.heads)  # 2 (B, h, L, d)
        return self.k_norm(k), v
