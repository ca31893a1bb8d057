"""CLIP's task: what it logs, and the bound on its temperature."""

from math import log

import pytest
import torch
from conftest import TINY

from ldm.config import load
from ldm.run import Run
from ldm.stages import clip, train_clip

CPU = torch.device("cpu")


@pytest.fixture
def task(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(clip, "run_training", lambda task, *_: found.append(task))
    train_clip(load(Run, None, [*TINY, f"out={tmp_path}"]), CPU)
    return found[0]


def test_the_accuracy_is_of_pictures_that_find_their_caption(task, monkeypatch):
    """Of three two do; of the captions one finds its picture."""
    alike = torch.tensor([[0.9, 0.1, 0.0], [0.95, 0.96, 0.0], [0.99, 0.98, 0.1]])
    monkeypatch.setattr(task, "_features", lambda network, batch: (alike, torch.eye(3), torch.ones(()), None))
    assert task.validate(task.network)["accuracy"] == pytest.approx(2 / 3)


def test_the_temperature_is_bounded_as_in_the_paper(task):
    task.network.clip.logit_scale.data.fill_(9.0)
    task.loss(task.network, next(task.batches(0, 0, 1)), 0, 0)
    assert task.network.clip.logit_scale.item() == pytest.approx(log(100))
