"""A prior over the codes of the first stage."""

from pathlib import Path

import torch

from ldm.autoencoders.codes import num_codes
from ldm.data import pictures_of
from ldm.folders import latent_fingerprint, save_prior
from ldm.priors import CodePrior
from ldm.run import Run
from ldm.stages.frozen import frozen_autoencoder
from ldm.stages.stage import own_folder, run_training, taken_first
from ldm.training.prior import PriorTask, codes_of
from ldm.training.start import PLAIN, Start


def train_prior(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a prior over the codes of the run's autoencoder; returns its folder.

    Raises:
        ValueError: the autoencoder has no codes, or too many, or the data is a stream.
    """
    config, folder = run.train_prior, own_folder(run, "prior")
    torch.manual_seed(config.seed)
    num_codes(run.bottleneck.build(run.autoencoder.channels))  # refused before one is looked for
    run, autoencoder = frozen_autoencoder(run, device, stand_in=start.scratch is not None)
    run.check_size(autoencoder.factor)
    network = run.prior.build(num_codes(autoencoder.bottleneck))
    data = pictures_of(run.data, "train")
    count = taken_first("the codes", data, run.prior.pictures, config, start)
    train = codes_of(autoencoder, data, count, config)
    val = codes_of(autoencoder, pictures_of(run.data, "val"), config.validate_samples, config)
    made_from = {"autoencoder": latent_fingerprint(autoencoder), "number of pictures": str(run.prior.pictures)}

    def save(net: CodePrior) -> None:
        save_prior(net, run, made_from["autoencoder"], folder)

    task = PriorTask(network, autoencoder, train, val, config, save)
    run_training(task, config, run, device, made_from, start)
    return folder
