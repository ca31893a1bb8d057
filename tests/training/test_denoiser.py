"""The denoiser's task: which text the network is told, and what its score says."""

import numpy as np
import pytest
import torch
from conftest import UNET

from ldm.config import load
from ldm.data.latents import Latents
from ldm.diffusion.process import drop_words
from ldm.evaluation.benchmark import true_pictures
from ldm.run import Run
from ldm.stages import denoiser, train_ldm

CPU = torch.device("cpu")


@pytest.fixture
def task_of(tmp_path, monkeypatch):
    """The task that train_ldm.py trains with these overrides."""

    def caught(*overrides):
        found = []
        monkeypatch.setattr(denoiser, "run_training", lambda task, *_: found.append(task))
        train_ldm(load(Run, None, [*UNET, "cache.use=never", f"out={tmp_path}", *overrides]), CPU)
        return found[0]

    return caught


def test_a_share_of_the_rows_is_told_nothing_and_the_others_their_captions(task_of):
    task, told = task_of("process.text_dropout=0.25"), []
    task.objective = lambda network, latent, cond, generator, step: told.append(cond) or torch.zeros(len(latent))
    cond = task.model.condition(["a red star", "two blue rings"] * 200)
    task.loss(task.network, Latents(torch.zeros(400, 4, 16, 16), cond), 0, 0)
    (found,) = told
    null = task.null.pad(cond.tokens.shape[1])
    dropped = (found.mask == null.mask).all(dim=1)
    assert 0.15 < dropped.float().mean() < 0.35
    for rows, wanted in ((dropped, null), (~dropped, cond)):
        for name in ("tokens", "pooled", "mask"):
            asked = getattr(wanted, name)
            asked = asked.expand(400, *asked.shape[1:])[rows] if len(asked) == 1 else asked[rows]
            assert torch.equal(getattr(found, name)[rows], asked), name


def test_dropped_words_leave_what_is_pooled(task_of):
    task = task_of()
    cond = task.model.condition(["a red star"] * 300)
    found = drop_words(cond, task.null, 0.5, torch.Generator().manual_seed(0))
    null = task.null.pad(cond.tokens.shape[1])
    dropped = (found.tokens == null.tokens).flatten(1).all(dim=1)
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(found.tokens[~dropped], cond.tokens[~dropped])
    assert torch.equal(found.mask[dropped], null.mask.expand(300, -1)[dropped])
    assert torch.equal(found.pooled, cond.pooled)


def test_the_score_is_the_share_of_right_pictures_of_the_network_that_is_looked_at(task_of, monkeypatch):
    task, drawers = task_of("train_ldm.score_every=1", "train_ldm.score_prompts=30"), []
    pictures = true_pictures(task.scored)

    def drawn(model, prompts, **options):
        drawers.append(model.denoiser)
        return pictures

    monkeypatch.setattr("ldm.training.denoiser.drawn_by", drawn)
    looked_at = torch.nn.Identity()
    assert len(task.scored) == 30 and task.score(looked_at) == 1
    pictures = np.roll(pictures, 1, axis=0)
    assert task.score(looked_at) < 0.3
    assert drawers == [looked_at] * 2
