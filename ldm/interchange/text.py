"""CLIP's text tower as transformers' CLIPTextModel, and its vocabulary as a CLIPTokenizer's files.

Legend: N ids of CLIP's table, D width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.interchange.names import (
    Names,
    Settings,
    Weights,
    check_supported,
    of_layers,
    read_json,
    read_setting,
    to_ours,
    to_theirs,
)
from ldm.text.clip import Architecture, ClipText
from ldm.text.vocabulary import NUM_IDS, SPECIAL, bpe, spell

START, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"ends": END, "zeros": "!"}  # the token of id 0 is that
LAYERS = "text_model."  # what their names begin with, in the files of most versions
MLP = 4  # widths of a block's feed-forward layer
EXPECTED = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_text_model",
    "vocab_size": NUM_IDS,
}
READ = {  # the last of them settle what is not used here: how a library reads the file, and the pooled text
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "projection_dim",
    "torch_dtype",
    "transformers_version",
}


def no_counterpart(architecture: Architecture) -> list[str]:
    """The settings, as key=value, that Stable Diffusion's pipeline does not have."""
    asked = {
        "text.states=words": architecture.states == "words",
        "text.padding=masked": architecture.padding == "masked",
    }
    return [setting for setting, holds in asked.items() if holds]


def settings(architecture: Architecture) -> dict[str, Any]:
    """The config.json of a text tower; without its last block where the denoiser is told the penultimate's states."""
    return {
        "architectures": ["CLIPTextModel"],
        **EXPECTED,
        "hidden_act": "quick_gelu" if architecture.quick_gelu else "gelu",
        "hidden_size": architecture.width,
        "intermediate_size": MLP * architecture.width,
        "max_position_embeddings": architecture.context_length,
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers - (architecture.states == "penultimate"),
        "projection_dim": architecture.embed_dim,
        "bos_token_id": SPECIAL[0],
        "eos_token_id": SPECIAL[1],
        "pad_token_id": SPECIAL[1] if architecture.padding == "ends" else 0,
    }


def architecture_of(theirs: Settings, padding: str, source: str) -> Architecture:
    """The tower that a config.json describes; ValueError where it is another than can be built here."""
    check_supported(theirs, EXPECTED, READ, source)
    width, heads = (read_setting(theirs, key, int, source) for key in ("hidden_size", "num_attention_heads"))
    act, between = theirs.get("hidden_act", "quick_gelu"), theirs.get("intermediate_size")
    if act not in ("gelu", "quick_gelu") or between != MLP * width or width % heads:
        raise ValueError(
            f"{source}: hidden_act {act}, hidden_size {width}, intermediate_size {between} and num_attention_heads "
            f"{heads} have no counterpart here"
        )
    return Architecture(
        width=width,
        layers=read_setting(theirs, "num_hidden_layers", int, source),
        heads=heads,
        context_length=read_setting(theirs, "max_position_embeddings", int, source),
        embed_dim=width,
        quick_gelu=act == "quick_gelu",
        padding=padding,
    )


def written(text: ClipText) -> Weights:
    """All weights of CLIPTextModel, with a row for each of CLIP's ids."""
    weights = to_theirs(text.tower.state_dict(), names(text))
    dropped = f"{LAYERS}encoder.layers.{text.architecture.layers - 1}."
    if text.architecture.states == "penultimate":
        weights = {key: value for key, value in weights.items() if not key.startswith(dropped)}
    table = f"{LAYERS}embeddings.token_embedding.weight"
    return {**weights, table: _whole_table(weights[table], text.vocabulary.kept)}


def _whole_table(rows: Tensor, kept: tuple[int, ...]) -> Tensor:
    """A table (N, D) from the ``rows`` of the ids that are ``kept``.

    An id that is not is given the mean of the bytes that spell it: here such a word would be so many tokens.
    """
    table = rows.new_empty(NUM_IDS, rows.shape[1])
    table[list(kept)] = rows
    for token in sorted(set(range(NUM_IDS)) - set(kept)):
        table[token] = table[list(spell(token))].mean(dim=0)  # bytes are always kept
    return table


def fill(text: ClipText, theirs: Weights, source: str) -> None:
    """Give ``text`` the weights of a CLIPTextModel; BrokenFile where one is missing or unknown."""
    prefixed = {key if key.startswith(LAYERS) else LAYERS + key: value for key, value in theirs.items()}
    prefixed.pop(f"{LAYERS}embeddings.position_ids", None)  # 0, 1, 2, ..., in older files
    weights = to_ours(prefixed, names(text), source)
    weights["text_projection"] = torch.eye(text.width)  # they have none: what is pooled is not read
    text.tower.load_state_dict(weights)


def names(text: ClipText) -> Names:
    """Their names of all parameters of the tower but the projection of what is pooled."""
    block = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    layers: Names = {
        "ln_final": (f"{LAYERS}final_layer_norm",),
        "token_embedding": (f"{LAYERS}embeddings.token_embedding",),
    }
    found: Names = {"positional_embedding": (f"{LAYERS}embeddings.position_embedding.weight",)}
    for i in range(text.architecture.layers):
        ours, theirs = f"transformer.resblocks.{i}", f"{LAYERS}encoder.layers.{i}"
        layers |= {f"{ours}.{own}": (f"{theirs}.{other}",) for own, other in block.items()}
        for kind in ("weight", "bias"):
            found[f"{ours}.attn.in_proj_{kind}"] = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
    return found | of_layers(text.tower, layers, besides={*found, "text_projection"})


def write_vocabulary(text: ClipText, folder: Path) -> None:
    """Write the files of a CLIPTokenizer with CLIP's whole vocabulary and the padding of ``text``."""
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PADS[text.architecture.padding]}
    described = {
        "tokenizer_class": "CLIPTokenizer",
        **special,
        "do_lower_case": True,
        "model_max_length": text.context_length,
    }
    merges = [" ".join(pair) for pair in sorted(bpe().bpe_ranks, key=lambda pair: bpe().bpe_ranks[pair])]
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n", encoding="utf-8")


def padding_of(folder: Path) -> str:
    """How the tokenizer in ``folder`` pads.

    Raises:
        BrokenFile: a file of it is missing or unreadable.
        ValueError: its vocabulary is not CLIP's, or it pads otherwise.
    """
    file, newer = folder / "vocab.json", folder / "tokenizer.json"  # which transformers writes from version 5 on
    ids = (read_json(newer).get("model") or {}).get("vocab") if newer.is_file() else read_json(file)
    if ids != _vocabulary():
        raise ValueError(f"the vocabulary in {folder} is not CLIP's, and no other has a counterpart here")
    pad = read_json(folder / "tokenizer_config.json").get("pad_token", END)
    pad = pad.get("content") if isinstance(pad, dict) else pad
    for padding, token in PADS.items():
        if pad == token:
            return padding
    raise ValueError(f"{folder / 'tokenizer_config.json'}: pad_token {pad!r} has no counterpart here")


def _vocabulary() -> dict[str, int]:
    """Ids by token, the special ones under their names there."""
    ids = dict(bpe().encoder)
    tokens = sorted(ids, key=ids.__getitem__)
    return {token: i for i, token in enumerate([*tokens[: NUM_IDS - 2], START, END])}
