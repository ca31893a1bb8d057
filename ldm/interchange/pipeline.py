"""A whole model as a folder of diffusers' StableDiffusionPipeline, both ways.

model_index.json  scheduler/  text_encoder/  tokenizer/  unet/  vae/
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ldm.autoencoders.bottlenecks import KLConfig
from ldm.config import load
from ldm.data.folder import FolderConfig
from ldm.denoisers.unet import UNet, UNetConfig
from ldm.diffusion.guidance import GuidanceConfig
from ldm.diffusion.times import UniformConfig
from ldm.files import fill_weights, whole_folder
from ldm.folders import CONFIG, load_model, save_model, unet_of
from ldm.interchange import autoencoder, schedule, text, unet
from ldm.interchange.first_stage import GENTLE, read_autoencoder
from ldm.interchange.names import read_json, read_setting, to_ours, to_theirs
from ldm.interchange.parts import SETTINGS, WEIGHTS, fitting, read_weights, write_json, write_part
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.samplers.ddim import DDIMConfig
from ldm.sampling import SampleConfig
from ldm.text.clip import Architecture, ClipConfig, ClipText

INDEX = "model_index.json"
LIBRARIES = {
    "scheduler": ("diffusers", ""),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def to_diffusers(model: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model in ``model`` to ``folder`` for diffusers' StableDiffusionPipeline.

    Raises:
        BrokenFile: a file of the model is missing or damaged.
        ValueError: something of the model has no counterpart there; the message names every such setting.
    """
    whole, run = load_model(model), load(Run, model / CONFIG)
    encoder = whole.text
    assert isinstance(encoder, ClipText)
    if missing := no_counterpart(whole, run):
        of_stage = autoencoder.no_counterpart(run.autoencoder, whole.autoencoder)
        alone = "" if of_stage else f"export {model / 'autoencoder'}, its first stage alone, or "
        raise ValueError(
            f"{model} has what Stable Diffusion's pipeline lacks ({', '.join(missing)}); {alone}train one as in "
            "configs/shapes_sd.yaml or configs/shards_unet.yaml"
        )
    network, stage = unet_of(whole), whole.autoencoder
    size = run.data.size
    denoiser = to_theirs(network.state_dict(), unet.names(network))
    (first,) = unet.names(network)[unet.TIME]
    denoiser[first] = unet.shift_time(denoiser[first], -schedule.offset(run))
    unet_settings = unet.settings(network, run.denoiser, stage.channels, encoder.width, size // stage.factor)
    parts = (
        ("unet", unet_settings, denoiser, WEIGHTS),
        ("vae", autoencoder.settings(run.autoencoder, size), autoencoder.written(stage), WEIGHTS),
        ("text_encoder", text.settings(encoder.architecture), text.written(encoder), "model"),
    )
    with whole_folder(folder) as staged:
        for name, settings, weights, file in parts:
            (staged / name).mkdir()
            write_part(settings, weights, staged / name, dtype, file=file)
        (staged / "scheduler").mkdir()
        write_json(schedule.settings(run), staged / "scheduler" / "scheduler_config.json")
        (staged / "tokenizer").mkdir()
        text.write_vocabulary(encoder, staged / "tokenizer")
        write_json(_index(schedule.settings(run)["_class_name"]), staged / INDEX)


def no_counterpart(model: TextToImage, run: Run) -> list[str]:
    """The settings, as key=value, that keep ``model``, made by ``run``, from being written."""
    assert isinstance(model.text, ClipText)
    of_network = ["a denoiser other than unet"]
    if isinstance(run.denoiser, UNetConfig):
        of_network = unet.no_counterpart(unet_of(model), run.denoiser)
    return [
        *of_network,
        *(["unclip.decoder=true"] if model.unclip is not None else []),
        *autoencoder.no_counterpart(run.autoencoder, model.autoencoder),
        *text.no_counterpart(model.text.architecture),
        *schedule.no_counterpart(run),
    ]


def from_diffusers(source: Path, folder: Path) -> None:
    """Write the StableDiffusionPipeline in ``source`` as a model folder of ours; weights become half precision.

    It draws by DDIM, whatever scheduler the pipeline names, in 50 steps with a guidance of 7.5, the pipeline's own
    defaults; and it trains on, where it is the ``base`` of a run, gently.

    Raises:
        BrokenFile: a file is missing or damaged.
        ValueError: something of it has no counterpart here.
    """
    index = read_json(source / INDEX)
    for name, (_, kind) in LIBRARIES.items():
        found = index[name][-1] if isinstance(index.get(name), list) and index[name] else None
        if kind and found != kind:
            raise ValueError(f"{source / INDEX}: {name} is {found or 'missing'}; only a {kind} has a counterpart here")
    encoder = _text(source / "text_encoder", source / "tokenizer")
    first, stage = read_autoencoder(source / "vae")
    config, network, side = _unet(source / "unet", stage.channels, encoder.width)
    levels = source / "scheduler" / "scheduler_config.json"
    table, process = schedule.config_of(read_json(levels), str(levels))
    run = replace(
        Run(),
        sampler=DDIMConfig(),
        guidance=GuidanceConfig(scale=7.5),
        sample=SampleConfig(steps=50, batch=4),
        data=FolderConfig(size=side * stage.factor),
        autoencoder=first,
        bottleneck=KLConfig(),
        text=_described(encoder.architecture),
        denoiser=config,
        schedule=table,
        process=process,
        times=UniformConfig(),
        out=f"{folder}-trained",
        train_autoencoder=GENTLE,
        train_ldm=GENTLE,
    )
    size = (run.data.size, run.data.size)
    save_model(TextToImage(network, stage, encoder, process.build(table.build()), run.sampling, size), run, folder)


def _text(folder: Path, tokenizer: Path) -> ClipText:
    settings = folder / SETTINGS
    encoder = ClipText(text.architecture_of(read_json(settings), text.padding_of(tokenizer), str(settings)))
    with fitting(folder):
        text.fill(encoder, read_weights(folder, "model"), str(folder))
    return encoder


def _described(architecture: Architecture) -> ClipConfig:
    """The sizes of a text tower as a run's."""
    shared = {f.name for f in fields(ClipConfig)} & {f.name for f in fields(Architecture)}
    return ClipConfig(**{name: getattr(architecture, name) for name in shared})


def _unet(folder: Path, channels: int, text_width: int) -> tuple[UNetConfig, UNet, int]:
    """Its configuration, the network, and the side of the latents that it was trained on."""
    settings, where = read_json(folder / SETTINGS), str(folder / SETTINGS)
    config = unet.config_of(settings, where)
    widths = {"in_channels": channels, "out_channels": channels, "cross_attention_dim": text_width}
    for key, width in widths.items():
        if settings.get(key) != width:
            raise ValueError(f"{where}: {key} {settings.get(key)} does not fit the other parts, which have {width}")
    network = config.build(channels=channels, text_width=text_width, pooled_width=0)
    with fitting(folder):
        theirs = unet.as_convolutions(read_weights(folder))
        weights = to_ours(theirs, unet.names(network), str(folder))
        weights[unet.TIME] = unet.shift_time(weights[unet.TIME], 1)
        fill_weights(network, weights, folder)
    return config, network, read_setting({"sample_size": 64, **settings}, "sample_size", int, where)


def _index(scheduler: str) -> dict[str, Any]:
    """model_index.json: which class reads which folder."""
    parts = {name: [library, kind or scheduler] for name, (library, kind) in LIBRARIES.items()}
    none = {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    return {"_class_name": "StableDiffusionPipeline", **parts, **none, "requires_safety_checker": False}
