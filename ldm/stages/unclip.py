"""unCLIP's prior of CLIP's embedding of the picture."""

from pathlib import Path

import torch

from ldm.folders import fingerprint, save_unclip
from ldm.run import Run
from ldm.stages.frozen import frozen_clip
from ldm.stages.stage import own_folder, run_training, taken_first
from ldm.training.start import PLAIN, Start
from ldm.training.unclip import UnclipTask, embeddings_of
from ldm.unclip import EmbeddingPrior, Unclip


def train_unclip(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train unCLIP's prior of the run's own CLIP; returns its folder.

    Raises:
        ValueError: the run has trained no CLIP, or not of pictures of this size, or its data is a stream.
    """
    config, folder = run.train_unclip, own_folder(run, "unclip")
    torch.manual_seed(config.seed)
    text, picture = frozen_clip(run, device)
    prior = run.unclip.build(picture.architecture.output_dim, text).to(device)
    unclip = Unclip(picture, prior, run.unclip.steps, run.unclip.scale)
    data = run.data.build("train")
    pictures = taken_first("CLIP's embeddings", data, run.unclip.pictures, config, start)
    train = embeddings_of(picture, data, pictures, config)
    prior.measure(train.embeddings)
    dropout = run.process.text_dropout
    made_from = {
        "text encoder": fingerprint(text),
        "picture tower": fingerprint(picture),
        "number of pictures": str(run.unclip.pictures),
        "dropout of text": str(dropout),
    }

    def save(net: EmbeddingPrior) -> None:
        save_unclip(unclip._replace(prior=net), run, made_from["text encoder"], folder)

    task = UnclipTask(unclip, text, train, run.data.build("val"), config, save, text_dropout=dropout)
    run_training(task, config, run, device, made_from, start)
    return folder
