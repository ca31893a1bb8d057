"""The first stage, which may go on from a base model's, with all of it or with the decoder alone."""

from dataclasses import replace
from pathlib import Path

import torch

from ldm.autoencoders import Autoencoder
from ldm.config import load
from ldm.data import pictures_of
from ldm.files import check_folder, check_ours, fill_weights, read_tensors
from ldm.folders import (
    CONFIG,
    DECODER,
    is_model,
    latent_fingerprint,
    load_autoencoder,
    load_model,
    save_autoencoder,
    save_model,
)
from ldm.run import Run
from ldm.stages.settings import network_settings
from ldm.stages.stage import own_folder, resumes, run_training
from ldm.training.adversary import Adversary
from ldm.training.autoencoder import AutoencoderTask
from ldm.training.engine import processes
from ldm.training.start import DECODER_ALONE, PLAIN, Start


def train_autoencoder(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train the first stage; returns its folder."""
    run.check_autoencoder()
    if run.decoder_only:
        check_joined(run)
    config, folder = run.train_autoencoder, own_folder(run, "autoencoder")
    torch.manual_seed(config.seed)  # the first weights, too, follow from the configuration
    network = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    if run.base and not resumes(run, AutoencoderTask.name):
        start_autoencoder(run, network)
    if run.decoder_only:
        network.freeze_latents()
    data = pictures_of(run.data, "train"), pictures_of(run.data, "val")

    def save(net: Autoencoder) -> None:
        save_autoencoder(net, run, folder)

    made_from = {"norm": run.autoencoder.norm}  # weights of either norm would load
    adversary = Adversary(run.adversarial, config) if run.adversarial.weight else None
    if adversary is not None:
        made_from["discriminator"] = f"width {run.adversarial.width}, layers {run.adversarial.layers}"
    print(f"pictures of {run.data.size} x {run.data.size} become {latents_of(run)}")
    task = AutoencoderTask(network, run.reconstruction, run.robustness, *data, config, save, adversary)
    joined = bytes_of(Path(run.base)) if run.decoder_only and is_model(Path(run.base)) else 0  # about
    run_training(task, config, run, device, made_from, start, adversary, besides=joined)
    if run.decoder_only and not start.scratch and processes(device).is_main_process:
        join_decoder(run, folder)
    return folder


def bytes_of(folder: Path) -> int:
    """Of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def latents_of(run: Run) -> str:
    """The latents' size in words."""
    factor = run.autoencoder.factor
    side = run.data.size // factor
    return f"latents of {side} x {side} x {run.autoencoder.channels}, a factor of {factor}"


def start_autoencoder(run: Run, network: Autoencoder) -> None:
    """Load the weights of the base model's autoencoder; a decoder that is trained alone may be another than its.

    Raises:
        ValueError: it is another kind of network.
    """
    base = Path(run.base) / "autoencoder"
    check_folder(base)
    theirs, ours = (network_settings(of, "autoencoder") for of in (load(Run, base / CONFIG), run))
    other = {name for name in theirs | ours if theirs.get(name) != ours.get(name)}
    weights = read_tensors(base / "autoencoder.safetensors")
    begins = ""
    if run.decoder_only and other and other <= DECODER_ALONE:
        own = {key: value for key, value in network.state_dict().items() if key.startswith(DECODER)}
        weights = {key: value for key, value in weights.items() if not key.startswith(DECODER)} | own
        begins = ", but for its decoder, which is another and begins anew"
    elif other:
        own_ones = " ".join(f"{name}={theirs[name]}" for name in sorted(other & theirs.keys()))
        raise ValueError(
            f"base {run.base} has an autoencoder of other settings; use its own ({own_ones}), or leave base out"
        )
    fill_weights(network, weights, base / "autoencoder.safetensors")
    print(f"the autoencoder starts from {run.base}{begins}")


def check_joined(run: Run) -> None:
    """Raise ValueError where `join_decoder` would replace another model than its own of an earlier time."""
    folder, base = Path(run.out) / "model", Path(run.base)
    check_ours(folder)
    if not is_model(folder) or not is_model(base):
        return
    ours, theirs = ((model / "denoiser.safetensors").read_bytes() for model in (folder, base))
    if folder.resolve() == base.resolve() or ours != theirs:
        raise ValueError(f"{folder} is there, and {base} with a new decoder would take its place; give another out=")


def join_decoder(run: Run, autoencoder: Path) -> None:
    """Write the run's model: the base with the decoder in the folder ``autoencoder``, if the base is a whole model."""
    base, folder = Path(run.base), Path(run.out) / "model"
    if not is_model(base):
        print(f"{base} is no whole model: there is none with this decoder")
        return
    model, (joined, made_by) = load_model(base), load_autoencoder(autoencoder)
    if latent_fingerprint(model.autoencoder) != latent_fingerprint(joined):
        print(f"{base} knows other latents: there is no model with this decoder")
        return
    whole = replace(load(Run, base / CONFIG), autoencoder=made_by.autoencoder)
    save_model(replace(model, autoencoder=joined), whole, folder)
    print(f"{folder} is {base} with this decoder")
