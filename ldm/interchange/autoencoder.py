"""The first stage as diffusers' AutoencoderKL.

Its latents are shifted and scaled by one number each, ours by a mean and a std for each channel, and it has a 1 x 1
convolution on either side of the latent. Ours are written with the scale in these and a number of 1; theirs are read
with these in the convolutions beside them and the numbers as our mean and std. Both are exact.

Legend: C latent channels, M moments: the mean of each channel, then its log-variance.
"""

from math import isfinite
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder, AutoencoderConfig
from ldm.autoencoders.blocks import Attention, Downsample, ResBlock
from ldm.autoencoders.bottlenecks.gaussian import Gaussian
from ldm.blocks import Upsample
from ldm.files import BrokenFile
from ldm.interchange.names import (
    Names,
    Settings,
    Weights,
    check_supported,
    of_layers,
    read_setting,
    read_widths,
    residual,
    to_ours,
    to_theirs,
)

EXPECTED = {"act_fn": "silu", "in_channels": 3, "out_channels": 3}
READ = {
    "block_out_channels",
    "down_block_types",
    "force_upcast",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "up_block_types",
    "use_post_quant_conv",
    "use_quant_conv",
}
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, in older files
QUANT, POST_QUANT = "quant_conv", "post_quant_conv"


def no_counterpart(config: AutoencoderConfig, network: Autoencoder) -> list[str]:
    """The settings, as key=value, that AutoencoderKL does not have."""
    asked = {
        f"autoencoder.patch={config.patch}": config.patch > 1,
        f"autoencoder.norm={config.norm}": config.norm != "group",
        "autoencoder.bounded=true": config.bounded,
        f"autoencoder.decoder_width={config.decoder_width}": config.decoder_width not in (0, config.width),
        f"autoencoder.decoder_blocks={config.decoder_blocks}": config.decoder_blocks not in (0, config.blocks),
        f"autoencoder.groups={config.groups} autoencoder.width={config.width}": bool(config.width % config.groups),
        "a bottleneck other than kl": not isinstance(network.bottleneck, Gaussian),
    }
    return [setting for setting, holds in asked.items() if holds]


def settings(config: AutoencoderConfig, size: int) -> dict[str, Any]:
    """The config.json of an autoencoder of pictures of ``size`` x ``size``; ``no_counterpart`` is empty."""
    levels = len(config.multipliers)
    return {
        "_class_name": "AutoencoderKL",
        **EXPECTED,
        "block_out_channels": [config.width * multiplier for multiplier in config.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": config.channels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": config.groups,
        "sample_size": size,
        "scaling_factor": 1.0,
    }


def config_of(theirs: Settings, source: str) -> AutoencoderConfig:
    """The autoencoder that a config.json describes; ValueError where it is another than can be built here."""
    check_supported(theirs, EXPECTED, READ, source)
    width, multipliers = read_widths(theirs, source)
    down, up = theirs.get("down_block_types"), theirs.get("up_block_types")
    levels = len(multipliers)
    if down != ["DownEncoderBlock2D"] * levels or up != ["UpDecoderBlock2D"] * levels:
        raise ValueError(f"{source}: blocks {down}, {up} have no counterpart here")
    return AutoencoderConfig(
        channels=read_setting(theirs, "latent_channels", int, source),
        width=width,
        multipliers=multipliers,
        blocks=read_setting(theirs, "layers_per_block", int, source),
        attention=bool(theirs.get("mid_block_add_attention", True)),
        groups=read_setting({"norm_num_groups": 32, **theirs}, "norm_num_groups", int, source),
    )


def written(network: Autoencoder) -> Weights:
    """All weights of AutoencoderKL, the scale of the latents in the convolutions beside them."""
    assert isinstance(network.bottleneck, Gaussian)
    weights = to_theirs(network.state_dict(), names(network))
    for key in weights:
        if ".attentions." in key and key.endswith("weight") and weights[key].ndim == 4:
            weights[key] = rearrange(weights[key], "o i 1 1 -> o i")  # a linear layer there
    mean, std = network.mean.flatten(), network.std.flatten()  # (C,)
    weights[f"{QUANT}.weight"] = _convolution(torch.cat([1 / std, torch.ones_like(std)]).diag())
    weights[f"{QUANT}.bias"] = torch.cat([-mean / std, -2 * std.log()])  # (M,)
    weights[f"{POST_QUANT}.weight"] = _convolution(std.diag())
    weights[f"{POST_QUANT}.bias"] = mean
    if network.bottleneck.log_variance is not None:  # one for all, which no weight of ours says
        logs = weights[f"{QUANT}.weight"][len(std) :]
        logs.zero_()
        weights[f"{QUANT}.bias"][len(std) :] += network.bottleneck.log_variance
    return weights


def fill(network: Autoencoder, theirs: Weights, settings: Settings, source: str) -> None:
    """Give ``network`` the weights of an AutoencoderKL with such ``settings``.

    Raises:
        BrokenFile: a weight is missing or unknown.
        ValueError: the convolution behind the latent cannot be undone, the scale is no number above 0, or the shift is
            no number.
    """
    theirs, channels = dict(theirs), network.channels
    scaling = read_setting({"scaling_factor": 0.18215, **settings}, "scaling_factor", float, source)
    offset = settings.get("shift_factor") or 0.0  # taken off before the scale, in Stable Diffusion 3's and Flux's
    if not isinstance(offset, int | float) or not isfinite(offset):
        raise ValueError(f"{source}: shift_factor {offset!r} is no number")
    quant = _taken(theirs, QUANT, 2 * channels, settings, source)
    after = _taken(theirs, POST_QUANT, channels, settings, source)
    renamed = {_renamed(key): value for key, value in theirs.items()}
    for key, value in renamed.items():
        if ".attentions." in key and key.endswith("weight") and value.ndim == 2:
            renamed[key] = _convolution(value)
    weights = to_ours(renamed, names(network), source)
    last, first = _convolutions(network)
    # the decoder is given P z + p, zeros beyond the edge: as it is P y of y = z + P^-1 p, the encoder is to say y
    try:
        shift = torch.linalg.solve(after.weight, after.bias)  # (C,)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"{source}: {POST_QUANT} has no inverse, and no counterpart here") from error
    weights[f"{last}.weight"] = torch.einsum("mn,nihw->mihw", quant.weight, weights[f"{last}.weight"])
    weights[f"{last}.bias"] = quant.weight @ weights[f"{last}.bias"] + quant.bias
    weights[f"{last}.bias"][:channels] += shift
    weights[f"{first}.weight"] = torch.einsum("ochw,cz->ozhw", weights[f"{first}.weight"], after.weight)
    weights["mean"] = shift[:, None, None] + offset
    weights["std"] = torch.full_like(weights["mean"], 1 / scaling)
    network.load_state_dict(weights)


def names(network: Autoencoder) -> Names:
    """Their names of all parameters."""
    layers: Names = {}
    for way, block, change in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        level = place = 0
        convolutions = iter(("conv_in", "conv_out"))
        for i, part in enumerate(getattr(network, way)):
            ours = f"{way}.{i}"
            if isinstance(part, ResBlock):
                layers.update(residual(ours, f"{way}.{block}.{level}.resnets.{place}"))
                place += 1
            elif isinstance(part, Downsample | Upsample):
                layers[f"{ours}.conv"] = (f"{way}.{block}.{level}.{change}.0.conv",)
                level, place = level + 1, 0
            elif isinstance(part, nn.Sequential):
                layers.update(_middle(ours, part, f"{way}.mid_block"))
            elif isinstance(part, nn.GroupNorm):
                layers[ours] = (f"{way}.conv_norm_out",)
            elif isinstance(part, nn.Conv2d):
                layers[ours] = (f"{way}.{next(convolutions)}",)
    return of_layers(network, layers)


def _middle(ours: str, parts: nn.Sequential, theirs: str) -> Names:
    layers: Names = {}
    for i, part in enumerate(parts):
        if isinstance(part, Attention):
            of = f"{theirs}.attentions.0"
            layers[f"{ours}.{i}.norm"] = (f"{of}.group_norm",)
            layers[f"{ours}.{i}.qkv"] = (f"{of}.to_q", f"{of}.to_k", f"{of}.to_v")
            layers[f"{ours}.{i}.out"] = (f"{of}.to_out.0",)
        else:
            layers.update(residual(f"{ours}.{i}", f"{theirs}.resnets.{min(i, 1)}"))
    return layers


def _renamed(key: str) -> str:
    *path, layer, kind = key.split(".")
    return ".".join([*path, FORMER.get(layer, layer), kind])


def _convolutions(network: Autoencoder) -> tuple[str, str]:
    """The names of the encoder's last and the decoder's first convolution."""
    return f"encoder.{len(network.encoder) - 1}", "decoder.0"


class Affine(NamedTuple):
    """What a 1 x 1 convolution does at each position."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)


def _taken(weights: Weights, name: str, channels: int, settings: Settings, source: str) -> Affine:
    """The convolution ``name``, taken out of ``weights``; where the settings say that there is none, what it would be.

    Raises:
        BrokenFile: it is to be there, and is not.
    """
    if not settings.get(f"use_{name}", True):
        return Affine(torch.eye(channels), torch.zeros(channels))
    if missing := {f"{name}.weight", f"{name}.bias"} - weights.keys():
        raise BrokenFile(f"{source} lacks {', '.join(sorted(missing))}")
    return Affine(weights.pop(f"{name}.weight").reshape(channels, channels), weights.pop(f"{name}.bias"))


def _convolution(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]
