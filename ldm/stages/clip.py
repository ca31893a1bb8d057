"""CLIP: the text encoder of the run, and the picture tower that unCLIP wants."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ldm.folders import fingerprint, load_text, save_picture, save_text
from ldm.run import Run
from ldm.stages.stage import own_folder, resumes, run_training, training_folder
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
    first = processes(device).is_main_process
    kept = training_folder(run, ClipTask.name) / "vocabulary.json"
    # the first process's: streams differ
    [vocabulary] = broadcast_object_list([_vocabulary(run, kept, data[0]) if first else None])
    print(f"a vocabulary of {len(vocabulary)} tokens")

    def save(text: ClipText, picture: ClipPicture) -> None:
        save_text(text, folder)
        save_picture(picture, fingerprint(load_text(folder)), other)

    task = ClipTask(run.text, vocabulary, run.data.size, *data, config, save)
    if first and not start.scratch:
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(".tmp")
        fresh.write_text(json.dumps(vocabulary.kept) + "\n", encoding="utf-8")
        fresh.replace(kept)  # at once: whoever is killed here has the old one
    run_training(task, config, run, device, {}, start)
    return folder


def _vocabulary(run: Run, kept: Path, data: Any) -> Vocabulary:
    """That of the captions of ``data``; of a training that goes on the one that it has ``kept`` since it began."""
    if resumes(run, ClipTask.name) and kept.is_file():
        return Vocabulary(tuple(json.loads(kept.read_text(encoding="utf-8"))))
    return Vocabulary.of(data.captions(VOCABULARY_SAMPLES))
