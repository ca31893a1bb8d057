"""Whole models with random weights."""

import torch

from ldm.config import load
from ldm.folders import build_denoiser, save_model
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.text.clip import ClipText, build_clip
from ldm.text.vocabulary import Vocabulary


def random_model(folder, prompts, *overrides):
    """A model folder that knows the words of ``prompts``, with weights that let text, time and image all count.

    The denoisers' own start at zero output.
    """
    run = load(Run, None, overrides)
    torch.manual_seed(0)
    autoencoder = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    vocabulary = Vocabulary.of(prompts)
    text = ClipText.from_clip(build_clip(run.text, run.data.size, vocabulary), run.text, vocabulary)
    denoiser = build_denoiser(run, autoencoder, text)
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    size, process = (run.data.size, run.data.size), run.process.build(run.schedule.build())
    save_model(TextToImage(denoiser, autoencoder, text, process, run.sampling, size), run, folder)
    return folder
