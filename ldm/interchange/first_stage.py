"""A first stage alone as a folder of diffusers' AutoencoderKL, both ways."""

from dataclasses import replace
from pathlib import Path

import torch

from ldm.autoencoders import Autoencoder, AutoencoderConfig
from ldm.autoencoders.bottlenecks import KLConfig
from ldm.data.folder import FolderConfig
from ldm.files import whole_folder
from ldm.folders import load_autoencoder, save_autoencoder
from ldm.interchange import autoencoder
from ldm.interchange.names import read_json, read_setting
from ldm.interchange.parts import SETTINGS, fitting, read_weights, write_part
from ldm.run import Run
from ldm.training.optim import TrainConfig

AT_ONCE = 2**20  # pixels, of what is drawn or measured at once
GENTLE = TrainConfig(lr=1e-5, batch=4, warmup=100)  # of networks that were trained for long


def autoencoder_to_diffusers(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the first stage in ``source`` to ``folder`` for diffusers' AutoencoderKL.

    The mean that it says of a picture is the latent as it is scaled here.

    Raises:
        BrokenFile: a file is missing or damaged.
        ValueError: something of it has no counterpart there; the message names every such setting.
    """
    network, run = load_autoencoder(source)
    if missing := autoencoder.no_counterpart(run.autoencoder, network):
        raise ValueError(
            f"{source} has what AutoencoderKL lacks ({', '.join(missing)}); train one with the autoencoder and the "
            "bottleneck of configs/shapes_sd.yaml or configs/shards_unet.yaml"
        )
    with whole_folder(folder) as staged:
        write_part(autoencoder.settings(run.autoencoder, run.data.size), autoencoder.written(network), staged, dtype)


def autoencoder_from_diffusers(source: Path, folder: Path) -> None:
    """Write the AutoencoderKL in ``source`` as an autoencoder folder of ours; weights become half precision.

    It trains on, where it is in the ``base`` of a run, gently.

    Raises:
        BrokenFile: a file is missing or damaged.
        ValueError: it is another network, or something of it has no counterpart here.
    """
    settings, where = read_json(source / SETTINGS), str(source / SETTINGS)
    if (kind := settings.get("_class_name")) != "AutoencoderKL":
        raise ValueError(f"{where}: {kind} alone has no counterpart here; give an AutoencoderKL, or a whole pipeline")
    config, network = read_autoencoder(source)
    run = replace(
        Run(),
        data=FolderConfig(size=read_setting({"sample_size": 32, **settings}, "sample_size", int, where)),
        autoencoder=config,
        bottleneck=KLConfig(),
        out=f"{folder.parent}-trained",
        train_autoencoder=GENTLE,
    )
    run.sample.batch = max(1, AT_ONCE // run.data.size**2)
    save_autoencoder(network, run, folder)


def read_autoencoder(folder: Path) -> tuple[AutoencoderConfig, Autoencoder]:
    """The configuration of the AutoencoderKL in ``folder``, and the network."""
    settings = read_json(folder / SETTINGS)
    config = autoencoder.config_of(settings, str(folder / SETTINGS))
    network = config.build(KLConfig().build(config.channels))
    with fitting(folder):
        autoencoder.fill(network, read_weights(folder), settings, str(folder))
    return config, network
