"""The classifier of noised latents, which reads which words are in a caption."""

import pytest
import torch

from ldm.data.scene import BACKGROUNDS, COLORS, COUNTS, SHAPES, SIZES
from ldm.denoisers.classifier import ClassifierConfig, present

WORDS = ["red", "cross", "two", "navy"]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a red star", [1, 0, 0, 0]),
        ("Two Red Crosses on a navy background", [1, 1, 1, 1]),
        ("a colored star", [0, 0, 0, 0]),
        ("twofold; crossed. reds", [1, 0, 0, 0]),
        ("", [0, 0, 0, 0]),
    ],
)
def test_words_are_found_whole_and_in_the_plural(caption, found):
    assert present([caption], WORDS).tolist() == [found]


def test_it_looks_for_all_that_captions_of_the_shapes_world_say():
    counts = [word for count, word in COUNTS.items() if count > 1]
    assert sorted(ClassifierConfig().words) == sorted([*SHAPES, *COLORS, *BACKGROUNDS, *SIZES, *counts])


def test_logits_are_one_for_each_word_and_depend_on_latent_and_time():
    network = ClassifierConfig(words=WORDS, width=16, blocks=1).build(channels=3)
    for parameter in network.parameters():  # away from the zeros that its blocks start at
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.9])
    said = network(x, t)
    assert said.shape == (2, 4)
    assert not torch.allclose(said, network(x, t.flip(0))) and not torch.allclose(said, network(x.flip(0), t))


def test_it_learns_to_tell_what_is_there():
    torch.manual_seed(0)
    network = ClassifierConfig(words=["bright"], width=16, blocks=1).build(channels=1)
    opt = torch.optim.AdamW(network.parameters(), lr=3e-3)
    x = torch.randn(64, 1, 4, 4)
    there = (x.mean(dim=(1, 2, 3)) > 0).float()[:, None]
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x, torch.full((64,), 0.1)), there)
        opt.zero_grad(), loss.backward(), opt.step()
    assert loss < 0.2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"words": []}, "words"),
        ({"words": ["a", "a"]}, "words"),
        ({"width": 15}, "width 15"),
        ({"blocks": 0}, "blocks 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ClassifierConfig(**wrong)
