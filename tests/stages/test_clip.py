"""The text encoder's stage: what a training that goes on keeps of its beginning."""

import shutil

import torch
from conftest import TINY

from ldm.config import load
from ldm.folders import load_text
from ldm.run import Run
from ldm.stages import train_clip
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
    shutil.rmtree(tmp_path / "text")  # whose export was broken off
    train_clip(configured(3), CPU)
    assert load_text(tmp_path / "text").vocabulary.kept == first
