"""A ControlNet of a whole model."""

from pathlib import Path

import torch

from ldm.denoisers.control import ControlNet
from ldm.folders import model_fingerprints, save_control, unet_of
from ldm.run import Run
from ldm.stages.frozen import frozen_model
from ldm.stages.stage import own_folder, run_training
from ldm.stages.teaching import check_plain, objective_of
from ldm.training.control import ControlTask
from ldm.training.start import PLAIN, Start


def train_control(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a ControlNet of the run's own model, or else of its base or of the shipped one; returns its folder.

    Raises:
        ValueError: the model's denoiser is no U-Net, or it was trained by another objective.
    """
    config, folder = run.train_control, own_folder(run, "control")
    torch.manual_seed(config.seed)
    run, model = frozen_model(run, device)
    run.check_denoiser()
    check_plain(run)
    run.check_size(model.autoencoder.factor * unet_of(model).multiple)
    network = ControlNet(unet_of(model), model.autoencoder.factor, run.control.channels).to(device)
    fingerprints = model_fingerprints(model)
    made_from = {
        **fingerprints,
        "hint": str(run.control),
        "process": str(run.process),
        "weight": str(run.weight),
        "distribution of times": str(run.times),
    }

    def save(net: ControlNet) -> None:
        save_control(net, run, fingerprints, folder)

    data, dropout = (run.data.build("train"), run.data.build("val")), run.process.text_dropout
    task = ControlTask(model, network, objective_of(run, model), run.control, *data, config, save, text_dropout=dropout)
    run_training(task, config, run, device, made_from, start)
    return folder
