"""The networks that a stage of a run takes from others: of the run itself, of its base model, or of the shipped one."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.autoencoders import Autoencoder
from ldm.config import load
from ldm.files import check_folder, load_weights, settled
from ldm.folders import CONFIG, latent_fingerprint, load_autoencoder, load_text, shipped_model
from ldm.run import Run
from ldm.text.clip import Architecture, ClipText


def start_autoencoder(run: Run, network: Autoencoder) -> None:
    """Load the weights of the base model's autoencoder.

    Raises:
        ValueError: it is another kind of network.
    """
    base = Path(run.base) / "autoencoder"
    check_folder(base)
    if _network(load(Run, base / CONFIG), "autoencoder") != _network(run, "autoencoder"):
        raise ValueError(f"base {run.base} has an autoencoder of other settings; use its own, or leave base out")
    load_weights(network, base / "autoencoder.safetensors")
    print(f"the autoencoder starts from {run.base}")


def start_denoiser(base: Path, network: nn.Module, autoencoder: Autoencoder) -> None:
    """Load the base model's denoiser, which must be of the same latents.

    Raises:
        ValueError: the base is no whole model, or its denoiser is of another shape or of another autoencoder.
    """
    check_folder(base)
    if latent_fingerprint(load_autoencoder(base / "autoencoder")[0]) != latent_fingerprint(autoencoder):
        raise ValueError(f"base {base} has another autoencoder: its denoiser knows other latents; use the base's own")
    load_weights(network, base / "denoiser.safetensors")
    print(f"the denoiser starts from {base}")


def frozen_autoencoder(run: Run, device: torch.device) -> tuple[Run, Autoencoder]:
    """The autoencoder that a stage builds on, and the run as it is with it."""
    folder = _stage(run, "autoencoder", "scripts/train_autoencoder.py")
    autoencoder, made_by = load_autoencoder(folder, device)
    return replace(run, autoencoder=made_by.autoencoder, bottleneck=made_by.bottleneck), autoencoder


def frozen_stages(run: Run, device: torch.device) -> tuple[Run, Autoencoder, ClipText]:
    """The autoencoder and the text encoder that the denoiser builds on, and the run as it is with them."""
    run, autoencoder = frozen_autoencoder(run, device)
    if run.text.model:
        text = run.text.build(run.data.size).to(device)
    else:
        text = load_text(_stage(run, "text", "scripts/train_clip.py"), device)
    return run, autoencoder, text


def _stage(run: Run, name: str, script: str) -> Path:
    folder = Path(run.out) / name
    if settled(folder):
        return folder
    base = Path(run.base) if run.base else shipped_model()
    whose = f"{base}'s" if run.base else "the shipped model's"
    if _network(run, name) != _network(load(Run, base / CONFIG), name):
        raise ValueError(
            f"{folder} is not there, and this run's {name} is not {whose}, which else could stand in: "
            f"train it with {script}"
        )
    print(f"{folder} is not there: taking {whose} {name} ({script} trains one of this run's own)")
    return base / name


def _network(run: Run, stage: str) -> Any:
    """The part of the configuration that settles the network of a stage."""
    if stage == "autoencoder":
        return run.autoencoder, run.bottleneck.network  # a penalty's weight does not change what comes out
    return [getattr(run.text, f.name) for f in fields(Architecture) if hasattr(run.text, f.name)]
