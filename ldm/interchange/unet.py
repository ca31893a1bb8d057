"""The U-Net as diffusers' UNet2DConditionModel.

diffusers counts the N levels of a table from 0 and tells the network their numbers; here the first with noise is
t = 1 / N, and a network is told 1000 t. Where N is 1000 that is one more. The difference turns each pair of a cosine
and a sine by its own angle, and that the first layer on them takes up exactly.

Legend: F frequencies, D width.
"""

import json
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from ldm.denoisers.unet import Stage, UNet, UNetConfig
from ldm.interchange.names import (
    Names,
    Settings,
    Weights,
    check_supported,
    of_layers,
    read_setting,
    read_widths,
    residual,
)

CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")
TIME = "time.linear1.weight"
EXPECTED = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "addition_embed_type_num_heads": 64,
}
READ = {
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "in_channels",
    "layers_per_block",
    "norm_num_groups",
    "out_channels",
    "resnet_time_scale_shift",
    "sample_size",
    "transformer_layers_per_block",
    "up_block_types",
    "upcast_attention",  # for half precision whose exponent has few bits
    "use_linear_projection",  # in the place of a convolution of 1 x 1
}


def no_counterpart(network: UNet, config: UNetConfig) -> list[str]:
    """The settings, as key=value, that UNet2DConditionModel does not have."""
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    asked = {
        "qk_norm=true": config.qk_norm,
        "position=true": config.position,
        "pooled=true": config.pooled,
        f"text_depth={config.text_depth}": config.text_depth > 0,
        f"groups=0 denoiser.width={config.width}": len(groups) > 1,
        f"multipliers={json.dumps(config.multipliers, separators=(',', ':'))}": config.multipliers[0] != 1,
    }
    return [f"denoiser.{setting}" for setting, holds in asked.items() if holds]


def settings(network: UNet, config: UNetConfig, channels: int, text_width: int, side: int) -> dict[str, Any]:
    """The config.json of ``network``, for latents of ``side`` x ``side``; ``no_counterpart`` is empty."""
    kinds = [CROSS if i in config.attention_levels else PLAIN for i in range(len(config.multipliers))]
    heads = [config.heads_of(width) for width in _widths(config)]
    return {
        "_class_name": "UNet2DConditionModel",
        **EXPECTED,
        "attention_head_dim": heads if config.head_width else config.heads,  # diffusers' name for the number of heads
        "block_out_channels": _widths(config),
        "cross_attention_dim": text_width,
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": config.blocks,
        "norm_num_groups": network.norm.num_groups,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "sample_size": side,
        "transformer_layers_per_block": config.transformer_depth,
    }


def config_of(theirs: Settings, source: str) -> UNetConfig:
    """The U-Net that a config.json describes; ValueError where it is another than can be built here."""
    check_supported(theirs, EXPECTED, READ, source)
    width, multipliers = read_widths(theirs, source)
    down = read_setting(theirs, "down_block_types", list, source)
    up = read_setting(theirs, "up_block_types", list, source)
    kinds = list(zip(down, reversed(up), strict=False))
    if not len(down) == len(up) == len(multipliers) or not set(kinds) <= {CROSS, PLAIN}:
        raise ValueError(f"{source}: blocks {down}, {up} have no counterpart here")
    return UNetConfig(
        width=width,
        multipliers=multipliers,
        blocks=read_setting(theirs, "layers_per_block", int, source),
        attention_levels=[i for i, kind in enumerate(kinds) if kind == CROSS],
        transformer_depth=read_setting(
            {"transformer_layers_per_block": 1, **theirs}, "transformer_layers_per_block", int, source
        ),
        pooled=False,
        **_heads(theirs, [width * multiplier for multiplier in multipliers], source),
        scale_shift=theirs.get("resnet_time_scale_shift") == "scale_shift",
        groups=read_setting({"norm_num_groups": 32, **theirs}, "norm_num_groups", int, source),
    )


def _heads(theirs: Settings, widths: list[int], source: str) -> dict[str, Any]:
    """The attention heads of levels of ``widths``: as many at each, or all as wide."""
    asked = theirs.get("attention_head_dim")
    if not isinstance(asked, list) or len(set(map(str, asked))) == 1:
        return {"heads": read_setting(theirs, "attention_head_dim", int, source)}
    if len(asked) == len(widths) and all(type(heads) is int and heads > 0 for heads in asked):
        first = widths[0] // asked[0]
        if all(width == first * heads for width, heads in zip(widths, asked, strict=True)):
            return {"head_width": first}
    raise ValueError(
        f"{source}: attention_head_dim {asked} are the heads of levels of {widths} channels, neither as many at each "
        "nor all as wide, and have no counterpart here"
    )


def as_convolutions(theirs: Weights) -> Weights:
    """Weights (D, D) of linear projections around transformers as those (D, D, 1, 1) of convolutions."""
    ends = (".proj_in.weight", ".proj_out.weight")
    return {
        key: value[..., None, None] if key.endswith(ends) and value.ndim == 2 else value
        for key, value in theirs.items()
    }


def names(network: UNet) -> Names:
    """Their names of all its weights."""
    layers: Names = {
        "conv_in": ("conv_in",),
        "time.linear1": ("time_embedding.linear_1",),
        "time.linear2": ("time_embedding.linear_2",),
        "norm": ("conv_norm_out",),
        "conv_out": ("conv_out",),
    }
    cross = 0  # cross-attentions so far, in order of use

    def stage(ours: str, part: Stage, block: str, place: int) -> None:
        nonlocal cross
        layers.update(residual(f"{ours}.residual", f"{block}.resnets.{place}"))
        theirs = f"{block}.attentions.{place}"
        for own, other in (("norm", "norm"), ("project_in", "proj_in"), ("project_out", "proj_out")):
            layers[f"{ours}.{own}"] = (f"{theirs}.{other}",)
        for i in range(len(part.transformers)):
            own, other = f"{ours}.transformers.{i}", f"{theirs}.transformer_blocks.{i}"
            layers.update(_transformer(own, other, f"prepare.keys_values.{cross}.kv"))
            cross += 1

    def way(ours: str, parts: Any, theirs: str, change: str) -> None:
        level = place = 0
        for i, part in enumerate(parts):
            if isinstance(part, Stage):
                stage(f"{ours}.{i}", part, f"{theirs}.{level}", place)
                place += 1
            else:
                layers[f"{ours}.{i}.conv"] = (f"{theirs}.{level}.{change}.0.conv",)
                level, place = level + 1, 0

    way("down", network.down, "down_blocks", "downsamplers")
    stage("middle", network.middle, "mid_block", 0)
    layers.update(residual("middle_end", "mid_block.resnets.1"))
    way("up", network.up, "up_blocks", "upsamplers")
    return of_layers(network, layers)


def _transformer(ours: str, theirs: str, keys_values: str) -> Names:
    pairs = {
        "norm1": ("norm1",),
        "attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "attention.out": ("attn1.to_out.0",),
        "norm2": ("norm2",),
        "cross.q": ("attn2.to_q",),
        "cross.out": ("attn2.to_out.0",),
        "norm3": ("norm3",),
        "feed.rise": ("ff.net.0.proj",),
        "feed.fall": ("ff.net.2",),
    }
    layers = {f"{ours}.{own}": tuple(f"{theirs}.{each}" for each in others) for own, others in pairs.items()}
    return {**layers, keys_values: (f"{theirs}.attn2.to_k", f"{theirs}.attn2.to_v")}


def shift_time(weight: Tensor, by: float) -> Tensor:
    """The first layer (D, F) on the sinusoids of a time, which says of t + ``by`` what ``weight`` says of t.

    ``by`` is in thousandths, the unit of the angles of ``timestep_embedding``.
    """
    cosines, sines = weight.double().chunk(2, dim=1)  # 2 (D, F / 2)
    half = cosines.shape[1]
    angles = by * torch.exp(-log(10_000) * torch.arange(half).double() / half)  # (F / 2,)
    turned = (cosines * angles.cos() - sines * angles.sin(), cosines * angles.sin() + sines * angles.cos())
    return torch.cat(turned, dim=1).to(weight.dtype)


def _widths(config: UNetConfig) -> list[int]:
    return [config.width * multiplier for multiplier in config.multipliers]
