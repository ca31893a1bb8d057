"""A trained part, and a whole model, as a folder that needs nothing else to be loaded.

    model/  config.yaml  manifest.json  denoiser.safetensors  autoencoder/  text/
    autoencoder/  config.yaml  manifest.json  autoencoder.safetensors
    text/  config.json  manifest.json  text.safetensors

``config.yaml`` is the fully resolved configuration of the run that trained the part. Weights are half precision on
disk and single precision in memory.
"""

from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from ldm.autoencoders import Autoencoder
from ldm.config import load, to_yaml
from ldm.files import BrokenFile, check_folder, load_weights, save_tensors, whole_folder
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.text.clip import ClipText

SHIPPED = "shapes64"
CONFIG = "config.yaml"


def shipped_model() -> Path:
    """The model folder that comes with the package."""
    return Path(str(files("ldm"))) / "assets" / SHIPPED


def save_autoencoder(network: Autoencoder, run: Run, folder: Path) -> None:
    with whole_folder(folder) as staged:
        (staged / CONFIG).write_text(to_yaml(run))
        save_tensors(network.state_dict(), staged / "autoencoder.safetensors", torch.float16)


def save_text(text: ClipText, folder: Path) -> None:
    with whole_folder(folder) as staged:
        text.save(staged, torch.float16)


def save_model(denoiser: nn.Module, autoencoder: Autoencoder, text: ClipText, run: Run, folder: Path) -> None:
    """Write the model folder at once, or leave the one that is there."""
    with whole_folder(folder) as staged:
        (staged / CONFIG).write_text(to_yaml(run))
        save_tensors(denoiser.state_dict(), staged / "denoiser.safetensors", torch.float16)
        save_autoencoder(autoencoder, run, staged / "autoencoder")
        save_text(text, staged / "text")


def load_autoencoder(folder: Path, device: torch.device | str = "cpu") -> tuple[Autoencoder, Run]:
    """The autoencoder in ``folder``, frozen, and the run that made it.

    Raises:
        BrokenFile: a file is missing, damaged, or of another shape.
    """
    check_folder(folder)
    run = load(Run, folder / CONFIG)
    network = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    load_weights(network, folder / "autoencoder.safetensors")
    return network.requires_grad_(False).eval().to(device), run


def load_text(folder: Path, device: torch.device | str = "cpu") -> ClipText:
    """The text encoder in ``folder``, frozen."""
    check_folder(folder)
    return ClipText.load(folder).to(device)


def load_model(folder: Path, device: torch.device | str = "cpu") -> TextToImage:
    """The whole model in ``folder``, frozen, with the sampling settings of its configuration.

    Raises:
        BrokenFile: there is no model, or a file is missing, damaged or of another shape.
    """
    if not (folder / CONFIG).is_file():
        raise BrokenFile(f"{folder} is not a model folder: it has no {CONFIG}; train one with scripts/train_ldm.py")
    check_folder(folder)
    run = load(Run, folder / CONFIG)
    autoencoder, _ = load_autoencoder(folder / "autoencoder", device)
    text = load_text(folder / "text", device)
    denoiser = build_denoiser(run, autoencoder, text)
    load_weights(denoiser, folder / "denoiser.safetensors")
    denoiser.requires_grad_(False).eval().to(device)
    size = (run.data.size, run.data.size)
    return TextToImage(denoiser, autoencoder, text, run.schedule.build(), run.process, run.sample, size)


def build_denoiser(run: Run, autoencoder: Autoencoder, text: ClipText) -> nn.Module:
    """The denoiser of ``run`` with random weights; its channels and text widths are read off the other two parts."""
    network: nn.Module = run.denoiser.build(
        channels=autoencoder.channels, text_width=text.width, pooled_width=text.pooled_width
    )
    return network
