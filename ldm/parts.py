"""The networks that a stage of a run takes from others: of the run itself, of its base model, or of the shipped one."""

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.autoencoders import Autoencoder
from ldm.config import load, to_dict
from ldm.files import BrokenFile, check_folder, check_ours, fill_weights, read_tensors, settled
from ldm.folders import (
    CONFIG,
    DECODER,
    latent_fingerprint,
    load_autoencoder,
    load_model,
    load_picture,
    load_text,
    load_unclip,
    save_model,
    shipped_model,
)
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.text.clip import Architecture, ClipConfig, ClipText
from ldm.text.picture import ClipPicture
from ldm.training.start import DECODER_ALONE
from ldm.unclip import Unclip

# sections that settle a whole model
WHOLE = ("autoencoder", "bottleneck", "text", "denoiser", "unclip", "schedule", "process")
OF_TRAINING = ("text_dropout", "offset_noise", "input_perturbation")  # what of the process is a training's
AUTOENCODER_SCRIPT, TEXT_SCRIPT = "scripts/train_autoencoder.py", "scripts/train_clip.py"
UNCLIP_SCRIPT = "scripts/train_unclip.py"
OF_PRIOR = ("width", "depth", "heads")  # settings of unclip that settle the prior's network


def start_autoencoder(run: Run, network: Autoencoder) -> None:
    """Load the weights of the base model's autoencoder; a decoder that is trained alone may be another than its.

    Raises:
        ValueError: it is another kind of network.
    """
    base = Path(run.base) / "autoencoder"
    check_folder(base)
    theirs, ours = (_network(of, "autoencoder") for of in (load(Run, base / CONFIG), run))
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
    if not _is_model(folder) or not _is_model(base):
        return
    ours, theirs = ((model / "denoiser.safetensors").read_bytes() for model in (folder, base))
    if folder.resolve() == base.resolve() or ours != theirs:
        raise ValueError(f"{folder} is there, and {base} with a new decoder would take its place; give another out=")


def join_decoder(run: Run, autoencoder: Path) -> None:
    """Write the run's model: the base with the decoder in the folder ``autoencoder``, if the base is a whole model."""
    base, folder = Path(run.base), Path(run.out) / "model"
    if not _is_model(base):
        print(f"{base} is no whole model: there is none with this decoder")
        return
    model, (joined, made_by) = load_model(base), load_autoencoder(autoencoder)
    if latent_fingerprint(model.autoencoder) != latent_fingerprint(joined):
        print(f"{base} knows other latents: there is no model with this decoder")
        return
    whole = replace(load(Run, base / CONFIG), autoencoder=made_by.autoencoder)
    save_model(replace(model, autoencoder=joined), whole, folder)
    print(f"{folder} is {base} with this decoder")


def start_denoiser(run: Run, network: nn.Module, autoencoder: Autoencoder) -> None:
    """Load the denoiser of ``run.base``, which must be of the same latents.

    It is warned of another target or schedule, and where only one of the two is told unCLIP's embedding.

    Raises:
        ValueError: the base is no whole model, or its denoiser is of another shape or of another autoencoder.
    """
    base = Path(run.base)
    check_folder(base)
    if latent_fingerprint(load_autoencoder(base / "autoencoder")[0]) != latent_fingerprint(autoencoder):
        raise ValueError(f"base {base} has another autoencoder: its denoiser knows other latents; use the base's own")
    made_by, file = load(Run, base / CONFIG), base / "denoiser.safetensors"
    held = read_tensors(file)
    try:
        fill_weights(network, held, file)
    except BrokenFile as error:  # of other shapes
        own, asked = (to_dict(each)["denoiser"] for each in (made_by, run))
        others = " ".join(f"denoiser.{key}={_plain(value)}" for key, value in own.items() if value != asked.get(key))
        if not others:
            raise
        raise ValueError(f"base {base} has another denoiser than this run asks for; its own: {others}") from error
    print(f"the denoiser starts from {base}")
    known = _known_settings(made_by)
    if known != _known_settings(run):
        own = " ".join(f"{key}={_plain(value)}" for key, value in known.items())
        print(f"warning: base {base} has another target, schedule or condition; its own: {own}", file=sys.stderr)


def frozen_autoencoder(run: Run, device: torch.device) -> tuple[Run, Autoencoder]:
    """The autoencoder that a stage builds on, and the run as it is with it.

    Raises:
        ValueError: the one in the run's folder, or the base's or the shipped one, has other settings than the run.
    """
    folder = _stage(run, "autoencoder", AUTOENCODER_SCRIPT)
    autoencoder, made_by = load_autoencoder(folder, device)
    _check_own(run, "autoencoder", folder, _network(made_by, "autoencoder"), AUTOENCODER_SCRIPT)
    return replace(run, autoencoder=made_by.autoencoder, bottleneck=made_by.bottleneck), autoencoder


def frozen_stages(run: Run, device: torch.device) -> tuple[Run, Autoencoder, ClipText]:
    """The autoencoder and the text encoder that the denoiser builds on, and the run as it is with them.

    Raises:
        ValueError: one in the run's folder, or the base's or the shipped one, has other settings than the run.
    """
    run, autoencoder = frozen_autoencoder(run, device)
    return run, autoencoder, _frozen_text(run, device)


def _frozen_text(run: Run, device: torch.device) -> ClipText:
    if run.text.model:
        named: ClipText = run.text.build(run.data.size).to(device)
        return named
    folder = _stage(run, "text", TEXT_SCRIPT)
    text = load_text(folder, device)
    _check_own(run, "text", folder, _text_network(text.architecture), TEXT_SCRIPT)
    return text


def frozen_clip(run: Run, device: torch.device) -> tuple[ClipText, ClipPicture]:
    """Both towers of the run's own CLIP.

    Raises:
        ValueError: the run has trained none.
    """
    if run.text.model:
        raise ValueError(f"text.model {run.text.model}: unCLIP wants a CLIP of this run's own; leave text.model out")
    for tower in (Path(run.out) / "text", Path(run.out) / "picture"):
        if not settled(tower):
            raise ValueError(
                f"unCLIP wants both towers of a CLIP of this run's own, and {tower} is not there; train them with "
                f"{TEXT_SCRIPT} (of a training that an earlier version ended, by more train_clip.steps)"
            )
    text = _frozen_text(run, device)
    picture = load_picture(Path(run.out) / "picture", text, device)
    _check_size(run, picture)
    return text, picture


def frozen_unclip(run: Run, text: ClipText, device: torch.device) -> tuple[Run, Unclip]:
    """The prior and the picture tower that the denoiser builds on, and the run as it is with them.

    Raises:
        ValueError: neither the run nor its base has one, or the run's own is of other settings.
    """
    own = Path(run.out) / "unclip"
    folder = Path(run.base) / "unclip" if run.base and not settled(own) else own
    if not settled(folder):
        raise ValueError(f"unclip.decoder=true wants a prior, and {folder} is not there; train it with {UNCLIP_SCRIPT}")
    unclip, made_by = load_unclip(folder, text, device)
    _check_own(run, "unclip", folder, _network(made_by, "unclip"), UNCLIP_SCRIPT)
    _check_size(run, unclip.picture)
    sizes = {name: getattr(made_by.unclip, name) for name in OF_PRIOR}
    run = replace(run, unclip=replace(run.unclip, **sizes))
    return run, unclip._replace(steps=run.unclip.steps, scale=run.unclip.scale)


def _check_size(run: Run, picture: ClipPicture) -> None:
    """Raise ValueError where CLIP does not know pictures of the run's size."""
    size = picture.architecture.image_size
    if run.data.size != size:
        raise ValueError(
            f"data.size {run.data.size}: CLIP's picture tower was trained on pictures of {size}; set data.size={size}, "
            f"or train another with {TEXT_SCRIPT}"
        )


def frozen_model(run: Run, device: torch.device) -> tuple[Run, TextToImage]:
    """The whole model that a stage builds on: the run's own, or else the base or the shipped one.

    Of the run that comes with it all that settles the model is the model's own, but for what is a training's.

    Raises:
        ValueError: the run asks for another one.
    """
    own = Path(run.out) / "model"
    folder = own if settled(own) else Path(run.base) if run.base else shipped_model()
    model, made_by = load_model(folder, device), load(Run, folder / CONFIG)
    asked, usual, theirs = (to_dict(each) for each in (run, Run(), made_by))
    for part in WHOLE:
        for name, value in asked[part].items():
            if name not in OF_TRAINING and value not in (usual[part].get(name), theirs[part].get(name)):
                raise ValueError(
                    f"{part}.{name}={_plain(value)} is asked for, and {folder} has {_plain(theirs[part].get(name))}: "
                    "leave it out, or train such a model and give its base="
                )
    print(f"building on {folder}")
    parts = {part: getattr(made_by, part) for part in (*WHOLE, "objective")}
    process = replace(made_by.process, **{name: getattr(run.process, name) for name in OF_TRAINING})
    return replace(run, **{**parts, "process": process}), model


def _stage(run: Run, name: str, script: str) -> Path:
    folder = Path(run.out) / name
    if settled(folder):
        return folder
    base = Path(run.base) if run.base else shipped_model()
    whose = f"{base}'s" if run.base else "the shipped model's"
    ours, theirs = (_network(of, name) for of in (run, load(Run, base / CONFIG)))
    if {key for key in ours | theirs if ours.get(key) != theirs.get(key)} - _unsaid(run):
        raise ValueError(
            f"{folder} is not there, and this run's {name} is not {whose}, which else could stand in: "
            f"train it with {script}"
        )
    print(f"{folder} is not there: taking {whose} {name} ({script} trains one of this run's own)")
    return base / name


def _check_own(run: Run, name: str, folder: Path, found: dict[str, Any], script: str) -> None:
    """Raise ValueError where the stage in the run's own ``folder`` has other settings ``found`` than the run asks for.

    One of the base or of the shipped model was compared when it was chosen.
    """
    asked = _network(run, name)
    other = {key: value for key, value in found.items() if asked.get(key) != value and key not in _unsaid(run)}
    if folder.parent == Path(run.out) and other:
        first, *_ = other
        instead = f"{first}={_plain(asked[first])}" if first in asked else "another network"
        named = " ".join(f"{key}={_plain(value)}" for key, value in other.items())
        raise ValueError(
            f"{folder} was trained with {first}={_plain(other[first])}, and this run asks for {instead}: "
            f"give {named} to build on it, or train one of this run's own with {script}"
        )


def _known_settings(run: Run) -> dict[str, Any]:
    """The settings, by name, that settle what a denoiser says at which noise level, and what it is told."""
    settings = to_dict(run)
    seen = {f"process.{name}": settings["process"][name] for name in ("target", "unit_input", "learned_variance")}
    seen["unclip.decoder"] = run.unclip.decoder
    return seen | {f"schedule.{name}": value for name, value in settings["schedule"].items()}


def _network(run: Run, stage: str) -> dict[str, Any]:
    """The settings, by name, that settle the network of a stage."""
    if stage == "text":
        return _text_network(run.text)
    if stage == "unclip":
        return {f"unclip.{name}": getattr(run.unclip, name) for name in OF_PRIOR}
    _, bottleneck = run.bottleneck.network  # a penalty's weight does not change what comes out
    own = run.autoencoder
    decoder = {"decoder_width": own.decoder_width or own.width, "decoder_blocks": own.decoder_blocks or own.blocks}
    parts = {"autoencoder": asdict(own) | decoder, "bottleneck": {"name": to_dict(run)["bottleneck"]["name"]}}
    parts["bottleneck"] |= bottleneck
    return {f"{part}.{name}": value for part, settings in parts.items() for name, value in settings.items()}


def _unsaid(run: Run) -> set[str]:
    """Settings of a decoder that the run leaves as they are found: no latent depends on them."""
    return {key for key in DECODER_ALONE if not getattr(run.autoencoder, key.removeprefix("autoencoder."))}


def _is_model(folder: Path) -> bool:
    return settled(folder) and (folder / CONFIG).is_file()


def _text_network(described: ClipConfig | Architecture) -> dict[str, Any]:
    """Those of a text encoder: not those of its training alone."""
    names = [f.name for f in fields(Architecture) if f.name in ClipConfig.__dataclass_fields__]
    return {f"text.{name}": getattr(described, name) for name in names}


def _plain(value: Any) -> str:
    """``value`` as it is written after key= on a command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
