"""A trained part, and a whole model, as a folder that needs nothing else to be loaded.

    model/  config.yaml  manifest.json  denoiser.safetensors  autoencoder/  text/  and, where it is told c, unclip/
    autoencoder/  config.yaml  manifest.json  autoencoder.safetensors
    text/  config.json  manifest.json  text.safetensors
    picture/  config.json  manifest.json  made_from.json  picture.safetensors
    unclip/  config.yaml  manifest.json  made_from.json  unclip.safetensors  picture/
    classifier/  config.yaml  manifest.json  made_from.json  classifier.safetensors
    prior/  config.yaml  manifest.json  made_from.json  prior.safetensors
    control/  config.yaml  manifest.json  made_from.json  control.safetensors

``config.yaml`` is the fully resolved configuration of the run that trained the part. Weights are half precision on
disk and single precision in memory.
"""

import json
import sys
from hashlib import sha256
from importlib.resources import files
from math import isclose
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.codes import num_codes
from ldm.config import load, to_yaml
from ldm.denoisers.classifier import Classifier
from ldm.denoisers.control import ControlNet
from ldm.denoisers.unet import UNet
from ldm.files import MANIFEST, BrokenFile, check_folder, load_weights, save_tensors, settled, whole_folder
from ldm.pipeline import TextToImage
from ldm.priors import CodePrior
from ldm.run import Run
from ldm.text.clip import ClipText
from ldm.text.picture import ClipPicture
from ldm.types import Schedule
from ldm.unclip import Unclip

SHIPPED = "shapes64"
CONFIG = "config.yaml"
MADE_FROM = "made_from.json"
SCALE = ("mean", "std")  # of the latents, among an autoencoder's tensors
DECODER = "decoder."  # what the names of an autoencoder's weights begin with that no latent depends on


def shipped_model() -> Path:
    """The model folder that comes with the package."""
    return Path(str(files("ldm"))) / "assets" / SHIPPED


def is_model(folder: Path) -> bool:
    """Whether ``folder`` holds a whole model, and not a part of one or nothing."""
    return settled(folder) and (folder / CONFIG).is_file()


def save_autoencoder(network: Autoencoder, run: Run, folder: Path) -> None:
    """Write it in half precision, but for the latents' mean and std: they tell small differences of large numbers."""
    tensors = {key: value if key in SCALE else value.half() for key, value in network.state_dict().items()}
    with whole_folder(folder) as staged:
        (staged / CONFIG).write_text(to_yaml(run), encoding="utf-8")
        save_tensors(tensors, staged / "autoencoder.safetensors")


def save_text(text: ClipText, folder: Path) -> None:
    with whole_folder(folder) as staged:
        text.save(staged, torch.float16)


def save_picture(picture: ClipPicture, text: str, folder: Path) -> None:
    """Write the folder of CLIP's picture tower; ``text`` is the fingerprint of the text encoder beside it."""
    with whole_folder(folder) as staged:
        (staged / MADE_FROM).write_text(json.dumps({"text encoder": text}) + "\n", encoding="utf-8")
        picture.save(staged, torch.float16)


def save_model(model: TextToImage, run: Run, folder: Path) -> None:
    """Write the model folder at once, or leave the one that is there."""
    assert isinstance(model.text, ClipText)
    with whole_folder(folder) as staged:
        (staged / CONFIG).write_text(to_yaml(run), encoding="utf-8")
        save_tensors(model.denoiser.state_dict(), staged / "denoiser.safetensors", torch.float16)
        save_autoencoder(model.autoencoder, run, staged / "autoencoder")
        save_text(model.text, staged / "text")
        if model.unclip is not None:
            save_unclip(model.unclip, run, fingerprint(model.text), staged / "unclip")


def save_unclip(unclip: Unclip, run: Run, text: str, folder: Path) -> None:
    """Write the folder of unCLIP's prior and picture tower; ``text`` is the fingerprint of the text encoder."""
    with whole_folder(folder) as staged:
        _write_part("unclip", unclip.prior, run, {"text encoder": text}, staged)
        save_picture(unclip.picture, text, staged / "picture")


def save_classifier(network: Classifier, run: Run, autoencoder: str, folder: Path) -> None:
    """``autoencoder`` is the fingerprint of the one whose latents it reads."""
    _save_part("classifier", network, run, {"autoencoder": autoencoder}, folder)


def _save_part(name: str, network: nn.Module, run: Run, made_from: dict[str, str], folder: Path) -> None:
    with whole_folder(folder) as staged:
        _write_part(name, network, run, made_from, staged)


def _write_part(name: str, network: nn.Module, run: Run, made_from: dict[str, str], folder: Path) -> None:
    (folder / CONFIG).write_text(to_yaml(run), encoding="utf-8")
    (folder / MADE_FROM).write_text(json.dumps(made_from) + "\n", encoding="utf-8")
    save_tensors(network.state_dict(), folder / f"{name}.safetensors", torch.float16)


def load_classifier(folder: str | Path, model: TextToImage) -> Classifier:
    """The classifier in ``folder``, frozen, on the device of ``model``, whose latents and levels it must know.

    Raises:
        BrokenFile: a file is missing, damaged, or of another shape.
        ValueError: it reads the latents of another autoencoder, or other noise levels.
    """
    folder = Path(folder)
    check_folder(folder)
    run = load(Run, folder / CONFIG)
    made_from = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    check_same(model, made_from["autoencoder"], run.schedule.build(), str(folder))
    network = run.classifier.build(model.autoencoder.channels)
    load_weights(network, folder / "classifier.safetensors")
    return network.requires_grad_(False).eval().to(model.device)


def save_prior(network: CodePrior, run: Run, autoencoder: str, folder: Path) -> None:
    """Write a prior's folder; ``autoencoder`` is the ``latent_fingerprint`` of the one whose codes it knows."""
    _save_part("prior", network, run, {"autoencoder": autoencoder}, folder)


def load_prior(folder: Path, autoencoder: Autoencoder) -> CodePrior:
    """The prior in ``folder``, frozen, on the device of ``autoencoder``, whose codes it must know.

    Raises:
        BrokenFile: a file is missing, damaged, or of another shape.
        ValueError: it knows the codes of another autoencoder, or this one has none.
    """
    check_folder(folder)
    if json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))["autoencoder"] != latent_fingerprint(autoencoder):
        raise ValueError(f"{folder} was trained on the codes of another autoencoder; train one with train_prior.py")
    network = load(Run, folder / CONFIG).prior.build(num_codes(autoencoder.bottleneck))
    load_weights(network, folder / "prior.safetensors")
    return network.requires_grad_(False).eval().to(autoencoder.mean.device)


def save_control(network: ControlNet, run: Run, made_from: dict[str, str], folder: Path) -> None:
    """Write a ControlNet's folder; ``made_from`` is ``model_fingerprints`` of the model that it is of."""
    _save_part("control", network, run, made_from, folder)


def load_control(folder: Path, model: TextToImage) -> tuple[ControlNet, Run]:
    """The ControlNet in ``folder``, frozen, on the device of ``model``, which it must suit, and the run that made it.

    It is of use with another denoiser, too, that was trained on from the one that it knows; it is warned of.

    Raises:
        BrokenFile: a file is missing, damaged, or of another shape than the model's denoiser.
        ValueError: it knows other latents, noise levels, targets or text, or the model's denoiser is no U-Net.
    """
    check_folder(folder)
    run, unet = load(Run, folder / CONFIG), unet_of(model)
    made_from, own = json.loads((folder / MADE_FROM).read_text(encoding="utf-8")), model_fingerprints(model)
    check_same(model, made_from["autoencoder"], run.schedule.build(), str(folder))
    process = run.process.build(model.process.schedule)
    if made_from["text encoder"] != own["text encoder"] or process != model.process:
        raise ValueError(f"{folder} is of a model with another text encoder or target; train one for this model")
    network = ControlNet(unet, model.autoencoder.factor, run.control.channels)
    load_weights(network, folder / "control.safetensors")
    if made_from["denoiser"] != own["denoiser"]:
        print(f"warning: {folder} was trained beside another denoiser than this model's", file=sys.stderr)
    return network.requires_grad_(False).eval().to(model.device), run


def model_fingerprints(model: TextToImage) -> dict[str, str]:
    """Short hashes of its parts, but for the autoencoder's decoder."""
    text = model.text
    assert isinstance(text, nn.Module)
    return {
        "autoencoder": latent_fingerprint(model.autoencoder),
        "text encoder": fingerprint(text),
        "denoiser": fingerprint(model.denoiser),
    }


def unet_of(model: TextToImage) -> UNet:
    """The model's denoiser; ValueError where it is not a U-Net, which ControlNets are copies of."""
    if not isinstance(model.denoiser, UNet):
        kind = type(model.denoiser).__name__
        raise ValueError(f"the model's denoiser is a {kind}, and a ControlNet is a copy of a U-Net; give another model")
    return model.denoiser


def unclip_fingerprint(unclip: Unclip) -> str:
    """A short hash of all that c of a picture depends on: not of the prior's network."""
    scaling = {"mean": unclip.prior.mean, "std": unclip.prior.std}
    return _hash({**unclip.picture.state_dict(), **scaling})


def check_same(model: TextToImage, autoencoder: str, schedule: Schedule, whose: str) -> None:
    """Raise ValueError unless the latents and noise levels of ``whose`` network are those of ``model``."""
    if autoencoder != latent_fingerprint(model.autoencoder):
        raise ValueError(
            f"{whose} was trained on the latents of another autoencoder; name its model (--ckpt), or train one for this"
        )
    for t in (0.1, 0.5, 0.9):
        for a, b in zip(schedule.level(t), model.process.schedule.level(t), strict=True):
            if not isclose(float(a), float(b), rel_tol=1e-3):
                raise ValueError(f"{whose} was trained on another noise schedule; train one for this model")


def digest(folder: Path) -> str:
    """A short hash of a model folder's manifest, and so of all its files."""
    return sha256((folder / MANIFEST).read_bytes()).hexdigest()[:10]


def fingerprint(network: nn.Module) -> str:
    """A short hash of all weights and buffers, and of a text encoder's padding where it is not masked."""
    if isinstance(network, ClipText) and network.architecture.padding != "masked":
        return f"{_hash(network.state_dict())}-{network.architecture.padding}"
    return _hash(network.state_dict())


def _hash(state: dict[str, Tensor]) -> str:
    found = sha256()
    for key, value in sorted(state.items()):
        found.update(key.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def latent_fingerprint(autoencoder: Autoencoder) -> str:
    """A short hash of all that its latents and codes depend on: all but the decoder, which may be trained further."""
    return _hash({key: value for key, value in autoencoder.state_dict().items() if not key.startswith(DECODER)})


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


def holds_autoencoder(folder: Path) -> bool:
    """Whether ``folder`` is that of an autoencoder alone."""
    return (folder / "autoencoder.safetensors").is_file()


def first_stage_in(folder: Path) -> Path:
    """The folder of the autoencoder in a model's folder, or in a run's or its model's, or ``folder`` as its own."""
    within = (folder / "autoencoder", folder / "model" / "autoencoder")
    return next((path for path in within if path.is_dir()), folder)


def lone_autoencoder(folder: Path) -> Path | None:
    """``folder`` where it is an autoencoder's alone, or the autoencoder's within a run that has no model; else None."""
    if holds_autoencoder(folder):
        return folder
    within = folder / "autoencoder"
    return within if holds_autoencoder(within) and not (is_model(folder) or is_model(folder / "model")) else None


def load_text(folder: Path, device: torch.device | str = "cpu") -> ClipText:
    """The text encoder in ``folder``, frozen."""
    check_folder(folder)
    return ClipText.load(folder).to(device)


def load_picture(folder: Path, text: ClipText, device: torch.device | str = "cpu") -> ClipPicture:
    """CLIP's picture tower in ``folder``, frozen; ValueError where it was not trained beside ``text``."""
    check_folder(folder)
    if json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))["text encoder"] != fingerprint(text):
        raise ValueError(f"{folder} was trained beside another text encoder; train both with train_clip.py")
    return ClipPicture.load(folder).to(device)


def load_unclip(folder: Path, text: ClipText, device: torch.device | str = "cpu") -> tuple[Unclip, Run]:
    """The prior and the picture tower in ``folder``, frozen, and the run that made the prior.

    Raises:
        BrokenFile: a file is missing, damaged, or of another shape.
        ValueError: the prior reads another text encoder than ``text``.
    """
    check_folder(folder)
    if json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))["text encoder"] != fingerprint(text):
        raise ValueError(f"{folder} was trained on the words of another text encoder; train one with train_unclip.py")
    run, picture = load(Run, folder / CONFIG), load_picture(folder / "picture", text, device)
    prior = run.unclip.build(picture.architecture.output_dim, text)
    load_weights(prior, folder / "unclip.safetensors")
    prior.requires_grad_(False).eval().to(device)
    return Unclip(picture, prior, run.unclip.steps, run.unclip.scale), run


def load_model(folder: Path, device: torch.device | str = "cpu") -> TextToImage:
    """The whole model in ``folder``, frozen, with the sampling settings of its configuration.

    Raises:
        BrokenFile: there is no model, or a file is missing, damaged or of another shape.
    """
    if not is_model(folder):
        way_out = f"give {folder / 'model'}" if is_model(folder / "model") else "train one with scripts/train_ldm.py"
        what = f"is not a model folder: it has no {CONFIG}" if folder.exists() else "is not there"
        raise BrokenFile(f"{folder} {what}; {way_out}")
    check_folder(folder)
    run = load(Run, folder / CONFIG)
    autoencoder, _ = load_autoencoder(folder / "autoencoder", device)
    text = load_text(folder / "text", device)
    denoiser = build_denoiser(run, autoencoder, text)
    load_weights(denoiser, folder / "denoiser.safetensors")
    denoiser.requires_grad_(False).eval().to(device)
    unclip = load_unclip(folder / "unclip", text, device)[0] if run.unclip.decoder else None
    size, process = (run.data.size, run.data.size), run.process.build(run.schedule.build())
    return TextToImage(denoiser, autoencoder, text, process, run.sampling, size, unclip)


def build_denoiser(run: Run, autoencoder: Autoencoder, text: ClipText) -> nn.Module:
    """The denoiser of ``run`` with random weights; its channels and text widths are read off the other two parts."""
    channels = autoencoder.channels
    network: nn.Module = run.denoiser.build(
        channels=channels,
        out_channels=2 * channels if run.process.learned_variance else channels,
        text_width=text.width,
        pooled_width=text.pooled_width,
    )
    return network
