"""The networks that a stage takes as they are: of the run itself, of its base model, or of the shipped one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.autoencoders import Autoencoder
from ldm.config import load, to_dict
from ldm.files import settled
from ldm.folders import CONFIG, load_autoencoder, load_model, load_picture, load_text, load_unclip, shipped_model
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.stages.settings import OF_PRIOR, as_given, left_open, network_settings, text_settings
from ldm.text.clip import ClipText
from ldm.text.picture import ClipPicture
from ldm.unclip import Unclip

# sections that settle a whole model
WHOLE = ("autoencoder", "bottleneck", "text", "denoiser", "unclip", "schedule", "process")
OF_TRAINING = ("text_dropout", "offset_noise", "input_perturbation")  # what of the process is a training's
AUTOENCODER_SCRIPT, TEXT_SCRIPT = "scripts/train_autoencoder.py", "scripts/train_clip.py"
UNCLIP_SCRIPT = "scripts/train_unclip.py"


def frozen_autoencoder(run: Run, device: torch.device, *, stand_in: bool = False) -> tuple[Run, Autoencoder]:
    """The autoencoder that a stage builds on, and the run as it is with it.

    With ``stand_in``, for a dry run, one of random weights where no trained one is there.

    Raises:
        ValueError: the one in the run's folder, or the base's or the shipped one, has other settings than the run.
    """
    folder = _stage(run, "autoencoder", AUTOENCODER_SCRIPT, stand_in)
    if folder is None:
        untrained = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
        return run, untrained.requires_grad_(False).eval().to(device)
    autoencoder, made_by = load_autoencoder(folder, device)
    _check_own(run, "autoencoder", folder, network_settings(made_by, "autoencoder"), AUTOENCODER_SCRIPT)
    return replace(run, autoencoder=made_by.autoencoder, bottleneck=made_by.bottleneck), autoencoder


def frozen_stages(run: Run, device: torch.device, *, stand_in: bool = False) -> tuple[Run, Autoencoder, ClipText]:
    """The autoencoder and the text encoder that the denoiser builds on, and the run as it is with them.

    With ``stand_in``, for a dry run, of random weights where no trained ones are there.

    Raises:
        ValueError: one in the run's folder, or the base's or the shipped one, has other settings than the run.
    """
    run, autoencoder = frozen_autoencoder(run, device, stand_in=stand_in)
    return run, autoencoder, frozen_text(run, device, stand_in=stand_in)


def frozen_text(run: Run, device: torch.device, *, stand_in: bool = False) -> ClipText:
    """The text encoder that the denoiser builds on; see ``frozen_stages``."""
    if run.text.model:
        named: ClipText = run.text.build(run.data.size).to(device)
        return named
    folder = _stage(run, "text", TEXT_SCRIPT, stand_in)
    if folder is None:
        return run.text.build(run.data.size).to(device)
    text = load_text(folder, device)
    _check_own(run, "text", folder, text_settings(text.architecture), TEXT_SCRIPT)
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
    text = frozen_text(run, device)
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
    _check_own(run, "unclip", folder, network_settings(made_by, "unclip"), UNCLIP_SCRIPT)
    _check_size(run, unclip.picture)
    sizes = {name: getattr(made_by.unclip, name) for name in OF_PRIOR}
    run = replace(run, unclip=replace(run.unclip, **sizes))
    return run, unclip._replace(steps=run.unclip.steps, scale=run.unclip.scale)


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
                    f"{part}.{name}={as_given(value)} is asked for, and {folder} has "
                    f"{as_given(theirs[part].get(name))}: leave it out, or train such a model and give its base="
                )
    print(f"building on {folder}")
    parts = {part: getattr(made_by, part) for part in (*WHOLE, "objective")}
    process = replace(made_by.process, **{name: getattr(run.process, name) for name in OF_TRAINING})
    return replace(run, **{**parts, "process": process}), model


def _check_size(run: Run, picture: ClipPicture) -> None:
    """Raise ValueError where CLIP does not know pictures of the run's size."""
    size = picture.architecture.image_size
    if run.data.size != size:
        raise ValueError(
            f"data.size {run.data.size}: CLIP's picture tower was trained on pictures of {size}; set data.size={size}, "
            f"or train another with {TEXT_SCRIPT}"
        )


def _stage(run: Run, name: str, script: str, stand_in: bool) -> Path | None:
    """The folder of a trained stage: the run's, the base's or the shipped one; None where a ``stand_in`` must do."""
    folder = Path(run.out) / name
    if settled(folder):
        return folder
    base = Path(run.base) if run.base else shipped_model()
    whose = f"{base}'s" if run.base else "the shipped model's"
    ours, theirs = (network_settings(of, name) for of in (run, load(Run, base / CONFIG)))
    if {key for key in ours | theirs if ours.get(key) != theirs.get(key)} - left_open(run):
        if stand_in:
            print(f"{folder} is not there: random weights stand in for the {name} ({script} trains it)")
            return None
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
    asked = network_settings(run, name)
    other = {key: value for key, value in found.items() if asked.get(key) != value and key not in left_open(run)}
    if folder.parent == Path(run.out) and other:
        first, *_ = other
        instead = f"{first}={as_given(asked[first])}" if first in asked else "another network"
        named = " ".join(f"{key}={as_given(value)}" for key, value in other.items())
        raise ValueError(
            f"{folder} was trained with {first}={as_given(other[first])}, and this run asks for {instead}: "
            f"give {named} to build on it, or train one of this run's own with {script}"
        )
