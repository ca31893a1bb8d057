"""The text encoder's stage: what a training that goes on keeps of its beginning."""

import shutil
from math import log

import pytest
import torch
from conftest import TINY

from ldm.config import load
from ldm.folders import load_text
from ldm.run import Run
from ldm.stages import clip, train_clip
from ldm.text.vocabulary import Vocabulary

CPU = torch.device("cpu")


def test_a_clip_goes_on_with_the_vocabulary_that_it_began_with(tmp_path, monkeypatch):
    """Though there are other captions by now, as of a folder that has grown."""

    def configured(steps):
        return load(Run, None, [*TINY, f"out={tmp_path}", f"train_clip.steps={steps}"])

    train_clip(configured(1), CPU)
    first = load_text(tmp_path / "text").vocabulary.kept
    others = Vocabulary.of(["a caption of words that no shape has"])
    assert others.kept != first
    monkeypatch.setattr(Vocabulary, "of", staticmethod(lambda captions: others))
    train_clip(configured(2), CPU)
    assert load_text(tmp_path / "text").vocabulary.kept == first
    shutil.rmtree(tmp_path / "text")
    with pytest.raises(ValueError, match=r"was made with another vocabulary \(\w+, now \w+\)"):
        train_clip(configured(3), CPU)


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
