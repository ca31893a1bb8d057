"""The settings of a run that settle a network, by the names of the command line: what two runs must share."""

import json
from dataclasses import asdict, fields
from typing import Any

from ldm.config import to_dict
from ldm.run import Run
from ldm.text.clip import Architecture, ClipConfig
from ldm.training.start import DECODER_ALONE

OF_PRIOR = ("width", "depth", "heads")  # settings of unclip that settle the prior's network


def network_settings(run: Run, stage: str) -> dict[str, Any]:
    """The settings, by name, that settle the network of a stage."""
    if stage == "text":
        return text_settings(run.text)
    if stage == "unclip":
        return {f"unclip.{name}": getattr(run.unclip, name) for name in OF_PRIOR}
    _, bottleneck = run.bottleneck.network  # a penalty's weight does not change what comes out
    own = run.autoencoder
    decoder = {"decoder_width": own.decoder_width or own.width, "decoder_blocks": own.decoder_blocks or own.blocks}
    parts = {"autoencoder": asdict(own) | decoder, "bottleneck": {"name": to_dict(run)["bottleneck"]["name"]}}
    parts["bottleneck"] |= bottleneck
    return {f"{part}.{name}": value for part, settings in parts.items() for name, value in settings.items()}


def text_settings(described: ClipConfig | Architecture) -> dict[str, Any]:
    """Those of a text encoder's network: not those of its training alone."""
    names = [f.name for f in fields(Architecture) if f.name in ClipConfig.__dataclass_fields__]
    return {f"text.{name}": getattr(described, name) for name in names}


def left_open(run: Run) -> set[str]:
    """Settings of a decoder that the run leaves as they are found: no latent depends on them."""
    return {key for key in DECODER_ALONE if not getattr(run.autoencoder, key.removeprefix("autoencoder."))}


def as_given(value: Any) -> str:
    """``value`` as it is written after key= on a command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
