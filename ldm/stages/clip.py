"""CLIP: the text encoder of the run, and the picture tower that unCLIP wants."""

from hashlib import sha256
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from ldm.files import settled
from ldm.folders import fingerprint, load_text, save_picture, save_text
from ldm.run import Run
from ldm.stages.stage import own_folder, resumes, run_training
from ldm.text.clip import ClipText
from ldm.text.picture import ClipPicture
from ldm.text.vocabulary import Vocabulary
from ldm.training.clip import ClipTask
from ldm.training.engine import processes
from ldm.training.start import PLAIN, Start

VOCABULARY_SAMPLES = 20_000  # captions that the text encoder's vocabulary is taken from


def train_clip(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a CLIP of the run's own sizes on image-caption pairs; returns the folder of its text encoder."""
    config, folder, other = run.train_clip, own_folder(run, "text"), own_folder(run, "picture")
    torch.manual_seed(config.seed)
    data = run.data.build("train"), run.data.build("val")
    processes(device)
    if resumes(run, ClipTask.name) and settled(folder):  # whatever the captions are now
        vocabulary = load_text(folder).vocabulary
    else:
        [vocabulary] = broadcast_object_list([Vocabulary.of(data[0].captions(VOCABULARY_SAMPLES))])  # streams differ
    print(f"a vocabulary of {len(vocabulary)} tokens")

    def save(text: ClipText, picture: ClipPicture) -> None:
        save_text(text, folder)
        save_picture(picture, fingerprint(load_text(folder)), other)

    task = ClipTask(run.text, vocabulary, run.data.size, *data, config, save)
    made_from = {"vocabulary": sha256(str(vocabulary.kept).encode()).hexdigest()[:16]}
    run_training(task, config, run, device, made_from, start)
    return folder
