import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.denoisers import DENOISERS
from ldm.denoisers.dit import DiTConfig
from ldm.denoisers.unet import UNetConfig, group_norm
from ldm.types import Condition

TINY = {
    "unet": UNetConfig(width=16, multipliers=[1, 2], blocks=1, attention_levels=[1], heads=2, text_depth=1),
    "dit": DiTConfig(width=32, depth=2, heads=2, text_depth=1),
}
CONFIGS = {name: TINY.get(name, kind()) for name, kind in DENOISERS.items()}
CHANNELS, TEXT_WIDTH, POOLED_WIDTH = 3, 10, 6

every_network = pytest.mark.parametrize("name", DENOISERS)


def build(name: str, *, pooled_width: int = POOLED_WIDTH, awake: bool = True, **changes: Any) -> nn.Module:
    """A tiny network; ``awake`` moves its weights away from the zeros they start at."""
    torch.manual_seed(0)
    config = replace(CONFIGS[name], **changes)
    net = config.build(channels=CHANNELS, text_width=TEXT_WIDTH, pooled_width=pooled_width)
    if awake:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def draw(height: int = 8, width: int = 8, rows: int = 4) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(rows, 5, TEXT_WIDTH, generator=generator)
    pooled = torch.randn(rows, POOLED_WIDTH, generator=generator)
    mask = torch.arange(5)[None] < 1 + torch.arange(rows)[:, None]  # 1, 2, ... tokens
    x = torch.randn(rows, CHANNELS, height, width, generator=generator)
    return x, torch.linspace(0, 1, rows), Condition(tokens, pooled, mask)


def loss_of(net: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    return (net(x, t, cond) - x.flip(0)).square().mean()


@every_network
@pytest.mark.parametrize("pooled_width", [0, POOLED_WIDTH])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (6, 16)])
def test_output_has_the_latents_shape_and_is_zero_at_first(
    name: str, pooled_width: int, height: int, width: int
) -> None:
    x, t, cond = draw(height, width)
    assert torch.equal(build(name, pooled_width=pooled_width, awake=False)(x, t, cond), torch.zeros_like(x))
    out = build(name, pooled_width=pooled_width)(x, t, cond)
    assert out.shape == x.shape and out.isfinite().all() and out.std() > 0


@every_network
def test_compiling_a_network_warns_of_nothing_and_changes_nothing(name: str) -> None:
    net = build(name, **({"position": True} if name == "unet" else {}))
    x, t, cond = draw()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        compiled = torch.compile(net, backend="eager")(x, t, cond)
    torch.testing.assert_close(compiled, net(x, t, cond))


@every_network
def test_tokens_lie_one_after_another_in_memory(name: str) -> None:
    """From transposed ones torch 2.14 compiles gradients on a CPU that are not finite."""
    net, lie = build(name), []
    for norm in [module for module in net.modules() if isinstance(module, nn.LayerNorm)]:
        norm.register_forward_pre_hook(lambda _, inputs: lie.append(inputs[0].is_contiguous()))
    net(*draw())
    assert lie and all(lie)


@every_network
def test_a_network_may_say_more_channels_than_it_sees(name: str) -> None:
    x, t, cond = draw()
    sizes = {"channels": CHANNELS, "text_width": TEXT_WIDTH, "pooled_width": POOLED_WIDTH}
    assert CONFIGS[name].build(**sizes, out_channels=2 * CHANNELS)(x, t, cond).shape == (4, 2 * CHANNELS, 8, 8)


@every_network
def test_time_tokens_and_pooled_text_each_change_the_output(name: str) -> None:
    net = build(name)
    x, t, cond = draw()
    out = net(x, t, cond)
    others = [
        net(x, 1 - t, cond),
        net(x, t, replace(cond, tokens=cond.tokens.flip(2))),
        net(x, t, replace(cond, pooled=cond.pooled.flip(1))),
    ]
    assert all((other - out).abs().max() > 1e-4 for other in others)


@every_network
def test_without_pooled_text_only_the_tokens_tell(name: str) -> None:
    net = build(name, pooled=False)
    x, t, cond = draw()
    assert net.prepare.pooled is None
    assert torch.equal(net(x, t, replace(cond, pooled=cond.pooled.flip(1))), net(x, t, cond))


@every_network
@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_padding_tokens_do_not_change_the_output(name: str, backend: str) -> None:
    net = build(name, attention=backend)
    x, t, cond = draw()
    longer = cond.pad(9)
    longer = replace(longer, tokens=torch.where(longer.mask[..., None], longer.tokens, 100.0))
    torch.testing.assert_close(net(x, t, longer), net(x, t, cond), atol=1e-5, rtol=1e-5)


@every_network
def test_blocks_over_the_text_begin_as_the_identity_and_learn(name: str) -> None:
    x, t, cond = draw()
    plain, refined = build(name, text_depth=0), build(name, text_depth=2, awake=False)
    refined.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(refined(x, t, cond), plain(x, t, cond))
    loss_of(refined, x, t, cond).backward()
    last = refined.prepare.refiner.blocks[-1]
    assert last.attention.out.weight.grad.abs().max() > 0 and last.mlp[-1].weight.grad.abs().max() > 0


@every_network
@pytest.mark.parametrize("layer", ["attention.qkv", "cross.q", "keys_values.0.kv"])
def test_normed_queries_and_keys_bound_the_logits_however_the_weights_grow(name: str, layer: str) -> None:
    """Without a bound a fast learner's softmax ends at one token, and no gradient leads it away again."""
    x, t, cond = draw()

    def changed_by_growth(qk_norm: bool) -> float:
        net = build(name, qk_norm=qk_norm, text_depth=0)
        before = net(x, t, cond)
        for key, weight in net.state_dict().items():
            if f"{layer}.weight" in key:
                grown = len(weight) // {"attention.qkv": 3, "cross.q": 1, "keys_values.0.kv": 2}[layer]
                weight[:grown] *= 100  # the queries, or the keys; of the keys and values, the keys
        return (net(x, t, cond) - before).abs().max().item()

    assert changed_by_growth(True) < 0.1 * changed_by_growth(False)


@every_network
def test_refuses_a_negative_number_of_blocks_over_the_text(name: str) -> None:
    with pytest.raises(ValueError, match="text_depth -1 is negative"):
        replace(CONFIGS[name], text_depth=-1)


@every_network
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    net = build(name)
    x, t, cond = draw()
    torch.testing.assert_close(net(x, t, cond)[1:3], net(x[1:3], t[1:3], cond[1:3]), atol=1e-5, rtol=1e-5)


@every_network
def test_prepared_text_gives_exactly_the_same_output(name: str) -> None:
    net = build(name)
    x, t, cond = draw()
    assert torch.equal(net(x, t, net.prepare(cond)), net(x, t, cond))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x, t, net.prepare(cond)), net(x, t, cond))


@every_network
def test_backends_agree(name: str) -> None:
    inputs = draw()
    outs = [build(name, attention=backend)(*inputs) for backend in ("sdpa", "math", "auto")]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=1e-5, rtol=1e-5)


@every_network
def test_autocast_returns_float32_and_a_bfloat16_network_bfloat16(name: str) -> None:
    net = build(name)
    x, t, cond = draw()
    out = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x, t, cond)
    assert mixed.dtype == torch.float32
    assert (mixed - out).square().mean() < 1e-3 * out.square().mean()
    half = net.bfloat16()(x.bfloat16(), t, cond.to("cpu", torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - out).square().mean() < 1e-2 * out.square().mean()


@every_network
def test_gradients_reach_every_parameter_within_four_steps(name: str) -> None:
    net = build(name, awake=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    missing = {key for key, _ in net.named_parameters()}
    for _ in range(4):  # the zeroed ends of branches let the gradient through one after another
        optimizer.zero_grad()
        loss_of(net, *draw()).backward()
        optimizer.step()
        missing -= {key for key, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not missing


@every_network
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    grads = []
    for checkpointing in (False, True):
        net = build(name, checkpointing=checkpointing)
        loss_of(net, *draw()).backward()
        grads.append({key: p.grad for key, p in net.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


@every_network
def test_one_batch_is_overfitted_within_a_hundred_steps(name: str) -> None:
    net = build(name, awake=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    inputs = draw()
    losses: list[float] = []
    while len(losses) < 100 and (not losses or losses[-1] > 0.05 * losses[0]):
        optimizer.zero_grad()
        loss = loss_of(net, *inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_patches_are_put_back_where_they_came_from() -> None:
    net = build("dit", patch=2, awake=False)
    x, t, cond = draw(8, 12)
    with torch.no_grad():
        net.head.out.bias.copy_(torch.arange(2 * 2 * CHANNELS))  # the same patch everywhere
    tile = torch.arange(2 * 2 * CHANNELS).float().reshape(2, 2, CHANNELS).permute(2, 0, 1)  # (C, 2, 2)
    assert torch.equal(net(x, t, cond), tile.repeat(4, 1, 4, 6))


def test_scale_shift_and_transformer_depth_build_a_working_unet() -> None:
    net = build("unet", scale_shift=True, transformer_depth=2, dropout=0.1)
    x, t, cond = draw()
    loss_of(net, x, t, cond).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_unet_of_stable_diffusion_1_has_its_859_520_964_parameters() -> None:
    config = UNetConfig(width=320, multipliers=[1, 2, 4, 4], attention_levels=[0, 1, 2], heads=8)
    with torch.device("meta"):
        net = config.build(channels=4, text_width=768, pooled_width=0)
    assert sum(p.numel() for p in net.parameters()) == 859_520_964


@pytest.mark.parametrize("width", [8, 12, 32, 48, 100, 320])
def test_no_group_of_a_norm_is_a_single_channel(width: int) -> None:
    assert width // group_norm(width).num_groups >= 4


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (DiTConfig, {"width": 100, "heads": 8}, "width 100 is not divisible by heads 8; try width=96"),
        (DiTConfig, {"width": 6, "heads": 1}, "width 6 is not divisible by 4 (position embedding); try width=8"),
        (DiTConfig, {"patch": 0}, "patch 0 is not positive; use at least 1"),
        (DiTConfig, {"mlp_ratio": 0.0}, "mlp_ratio 0.0 is not positive; the usual ratio is 4"),
        (DiTConfig, {"attention": "flash"}, "attention 'flash' is unknown; use one of auto, sdpa, xformers, math"),
        (UNetConfig, {"width": 32, "head_width": 12}, "width 32 is not divisible by head_width 12; try head_width=32"),
        (UNetConfig, {"head_width": -1}, "head_width -1 is negative; use 0 for as many heads at every level"),
        (UNetConfig, {"width": 30, "heads": 4}, "width 30 is not divisible by heads 4; try width=28"),
        (UNetConfig, {"multipliers": []}, "multipliers [] must hold a positive number per level; try [1, 2]"),
        (UNetConfig, {"attention_levels": [2]}, "attention_levels holds 2, but the levels are 0 to 1; leave it out"),
        (UNetConfig, {"dropout": 1.0}, "dropout 1.0 is not a probability below 1; use 0 for none"),
        (UNetConfig, {"attention": "flash"}, "attention 'flash' is unknown; use one of auto, sdpa, xformers, math"),
    ],
)
def test_a_config_error_says_the_value_the_constraint_and_the_way_out(
    kind: type, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind(**wrong)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dit", {"patch": 2}, "latent size 7x8 is not divisible by patch 2; change the image size"),
        ("unet", {}, "latent size 7x8 is not divisible by 2; change the image size"),
    ],
)
def test_a_latent_of_the_wrong_size_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(name, **changes)(*draw(7, 8))


def test_the_unets_position_has_no_weights_and_tells_places_apart_far_from_the_border() -> None:
    plain, placed = (
        build("unet", multipliers=[1], attention_levels=[], position=position) for position in (False, True)
    )
    assert plain.state_dict().keys() == placed.state_dict().keys()
    placed.load_state_dict(plain.state_dict())
    x, t, cond = draw(64, 64, rows=1)
    flat = torch.ones_like(x)
    spread = [net(flat, t, cond)[..., 24:40, 24:40].std(dim=(2, 3)).mean() for net in (plain, placed)]
    assert spread[0] < 1e-4 < 1e-2 < spread[1]


def test_a_width_that_no_position_embedding_fits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width 18 is not divisible by 4 \(position embedding\); try width=20"):
        UNetConfig(width=18, heads=2, position=True)
