"""A classifier of noised latents, for classifier guidance."""

from pathlib import Path

import torch

from ldm.denoisers.classifier import Classifier
from ldm.folders import latent_fingerprint, save_classifier
from ldm.run import Run
from ldm.stages.frozen import frozen_autoencoder
from ldm.stages.stage import own_folder, run_training
from ldm.training.classifier import ClassifierTask
from ldm.training.start import PLAIN, Start


def train_classifier(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a classifier of the noised latents of the run's autoencoder; returns its folder."""
    config, folder = run.train_classifier, own_folder(run, "classifier")
    torch.manual_seed(config.seed)
    run, autoencoder = frozen_autoencoder(run, device, stand_in=start.scratch is not None)
    network = run.classifier.build(autoencoder.channels)
    data, schedule = (run.data.build("train"), run.data.build("val")), run.schedule.build()
    made_from = {"autoencoder": latent_fingerprint(autoencoder), "schedule": str(run.schedule)}

    def save(net: Classifier) -> None:
        save_classifier(net, run, made_from["autoencoder"], folder)

    task = ClassifierTask(network, autoencoder, schedule, *data, config, save)
    run_training(task, config, run, device, {**made_from, "list of words": str(run.classifier.words)}, start)
    return folder
