import warnings

import pytest
import torch
from torch import Tensor

from ldm.denoisers import attention as module
from ldm.denoisers.attention import BACKENDS, attention


def draw(keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, length, 8, generator=generator) for length in (7, keys, keys))


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bhnd,bhld->bhnl", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bhnl,bhld->bhnd", scores.softmax(-1), v.double()).float()


@pytest.mark.filterwarnings("ignore:xformers")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_backend_is_softmax_of_scaled_products(backend: str, masked: bool) -> None:
    q, k, v = draw()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)[:, None, None] if masked else None
    torch.testing.assert_close(attention(q, k, v, mask, backend), plain(q, k, v, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_masked_keys_have_no_influence_and_no_gradient(backend: str) -> None:
    q, k, v = (part.requires_grad_() for part in draw())
    mask = torch.tensor([True, True, True, False, False])[None, None, None]
    out = attention(q, k, v, mask, backend)
    torch.testing.assert_close(out, attention(q, k[:, :, :3], v[:, :, :3], None, backend))
    out.square().sum().backward()
    assert k.grad is not None and v.grad is not None
    assert k.grad[:, :, 3:].abs().max() == 0 and v.grad[:, :, 3:].abs().max() == 0


def test_backends_agree_on_gradients() -> None:
    grads = []
    for backend in ("sdpa", "math"):
        parts = [part.requires_grad_() for part in draw()]
        attention(*parts, None, backend).square().sum().backward()
        grads.append([part.grad for part in parts])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)


def test_queries_and_keys_take_the_dtype_of_the_values() -> None:
    q, k, v = draw()
    assert attention(q, k, v.bfloat16(), backend="math").dtype == torch.bfloat16
    assert attention(q, k, v.bfloat16(), backend="sdpa").dtype == torch.bfloat16


def test_auto_is_math_on_a_cpu_in_training_in_bfloat16_with_short_keys_and_sdpa_otherwise() -> None:
    q, k, _ = (part.bfloat16() for part in draw())
    long = torch.empty(2, 3, 1024, 8, dtype=torch.bfloat16)
    assert module._fastest(q, k) == "math"
    assert module._fastest(q, long) == "sdpa"
    assert module._fastest(q.float(), k.float()) == "sdpa"
    assert module._fastest(q.to("meta"), k.to("meta")) == "sdpa"
    with torch.inference_mode():
        assert module._fastest(q, k) == "sdpa"


def test_xformers_that_does_not_run_falls_back_with_one_warning_that_says_why() -> None:
    module._xformers_runs.cache_clear()
    q, k, v = draw()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outs = [attention(q, k, v, None, "xformers") for _ in range(3)]
    assert len(caught) == 1
    assert "xformers does not run on cpu: " in str(caught[0].message)
    torch.testing.assert_close(outs[-1], attention(q, k, v, None, "sdpa"))


def test_xformers_is_left_for_those_heads_alone_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in half precision on a GPU, where their width must be a multiple of 8."""

    def picky(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.shape[-1] % 8:
            raise NotImplementedError("query.shape[-1] % 8 != 0")
        return torch.full_like(q, 7.0)

    module._xformers_runs.cache_clear()
    monkeypatch.setattr(module, "_xformers", picky)
    assert (attention(*draw(), None, "xformers") == 7).all()
    narrow = [part[..., :6] for part in draw()]
    with pytest.warns(UserWarning, match=r"8 != 0; using sdpa attention for heads of 6 in float32"):
        out = attention(*narrow, None, "xformers")
    torch.testing.assert_close(out, attention(*narrow, None, "sdpa"))
    module._xformers_runs.cache_clear()
