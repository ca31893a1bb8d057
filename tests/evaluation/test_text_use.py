"""Whether a denoiser uses its text: the losses with the true, another and no caption."""

import pytest
import torch
from torch import nn

from ldm.data.latents import Latents
from ldm.diffusion.loss import loss
from ldm.diffusion.process import Process
from ldm.diffusion.schedules import CosineConfig
from ldm.diffusion.targets import TARGETS
from ldm.evaluation.text_use import BANDS, text_use
from ldm.pipeline import TextToImage
from ldm.types import Condition

SHAPE = (2, 4, 4)
PROCESS = Process(CosineConfig().build(), TARGETS["v"])


class Deaf(nn.Module):
    """Says the same whatever it is told."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, cond):
        return self.gain * x


class Listener(Deaf):
    """Takes the clean latent from its text: v = (alpha x - x0) / sigma."""

    def forward(self, x, t, cond):
        level = CosineConfig().build().level(t)
        x0 = cond.pooled.view(-1, *SHAPE)
        return (level.alpha * x - x0) / level.sigma


class Clock(Listener):
    """Is wrong by the time."""

    def forward(self, x, t, cond):
        return super().forward(x, t, cond) + t.view(-1, 1, 1, 1)


def condition(x0):
    return Condition(torch.zeros(len(x0), 1, 3), x0.flatten(1), torch.ones(len(x0), 1, dtype=torch.bool))


def silence(texts):
    return condition(torch.zeros(len(texts), *SHAPE))


def model(network):
    return TextToImage(network, None, silence, PROCESS)


@pytest.fixture
def held_out():
    latents = torch.randn(2, 32, *SHAPE)
    return [Latents(latent, condition(latent)) for latent in latents]


def test_a_network_that_does_not_listen_loses_nothing_by_a_wrong_caption(held_out):
    use = text_use(model(Deaf()), held_out)
    assert use.true == use.shuffled == use.empty


def test_a_network_that_listens_loses_by_none_and_more_by_anothers(held_out):
    use = text_use(model(Listener()), held_out)
    assert len(use.true) == len(use.times) == BANDS
    for true, empty, shuffled in zip(use.true, use.empty, use.shuffled, strict=True):
        assert true < 1e-5 < empty < shuffled


class Words(Listener):
    """Counts the captions' words, or reads them from left to right."""

    def __init__(self, ordered):
        super().__init__()
        self.ordered = ordered

    def forward(self, x, t, cond):
        words = cond.tokens[..., 0] * cond.mask  # (B, L)
        places = torch.arange(1, words.shape[1] + 1) if self.ordered else torch.ones(words.shape[1])
        return x * (words * places).sum(dim=1).view(-1, 1, 1, 1)


def read(texts):
    words = [[float(len(word)) for word in text.split()] or [0.0] for text in texts]
    length = max(map(len, words))
    tokens = torch.tensor([[*row, *[0.0] * (length - len(row))] for row in words])[..., None]
    mask = torch.tensor([[place < len(row) for place in range(length)] for row in words])
    return Condition(tokens, torch.zeros(len(texts), 1), mask)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_words_in_another_order_change_the_loss_of_a_network_that_binds_them(ordered):
    captions = [["a red star left of blue"] * 16, ["two tiny hearts and one ring"] * 16]
    held_out = [Latents(torch.randn(16, *SHAPE), read(texts)) for texts in captions]
    listening = TextToImage(Words(ordered), None, read, PROCESS)
    use = text_use(listening, held_out, captions)
    assert (use.true == pytest.approx(use.reordered)) is not ordered
    assert "loss_reordered" in use.figures()
    assert "loss_reordered" not in text_use(listening, held_out).figures()


def test_the_mean_loss_is_that_of_all_samples_at_evenly_spread_times(held_out):
    network = Deaf()
    generator, total = torch.Generator().manual_seed(0), 0.0
    times = ((torch.arange(64) + 0.5) / 64)[torch.randperm(64, generator=generator)]
    for (latent, cond), t in zip(held_out, times.split(32), strict=True):
        noise = torch.randn(latent.shape, generator=generator)
        total += loss(network, PROCESS, latent, cond, t, noise).sum().item()
    assert text_use(model(network), held_out).figures()["loss"] == pytest.approx(total / 64, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_times_and_bands_do_not_depend_on_the_batch(held_out, batch):
    """The errors are the times' alone."""
    latents = torch.cat([part.latent for part in held_out]).split(batch)
    use = text_use(model(Clock()), [Latents(latent, condition(latent)) for latent in latents])
    assert use.true == pytest.approx([((band + 0.5) / BANDS) ** 2 for band in range(BANDS)], abs=0.01)


def test_fewer_samples_than_bands_are_measured_in_fewer_bands():
    latent = torch.randn(3, *SHAPE)
    use = text_use(model(Deaf()), [Latents(latent, condition(latent))])
    assert len(use.true) == 3 and all(value > 0 for value in use.true)


def test_a_caption_is_never_exchanged_for_an_equal_one():
    latent = torch.randn(16, *SHAPE)
    latent[1::2] = latent[::2]  # neighbours have the same caption
    use = text_use(model(Listener()), [Latents(latent, condition(latent))])
    assert min(use.shuffled) > 0.01


@pytest.mark.parametrize("count", [1, 8])
def test_where_all_captions_are_equal_nothing_is_said_of_another(count):
    latent = torch.randn(1, *SHAPE).repeat(count, 1, 1, 1)
    use = text_use(model(Listener()), [Latents(latent, condition(latent))])
    assert use.shuffled is None
    assert {name.partition("@")[0] for name in use.figures()} == {"loss", "loss_empty"}
    assert use.lines().keys() == {"true caption", "no caption"}
