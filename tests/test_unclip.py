"""unCLIP: p(x | y) = p(x | c, y) p(c | y), with a prior that is exact and with one of random weights."""

from dataclasses import replace

import pytest
import torch

from ldm.config import load
from ldm.editing import resembling
from ldm.folders import load_model, load_unclip, save_model, shipped_model
from ldm.run import Run
from ldm.samplers import ImageNoise
from ldm.text.clip import ClipConfig, build_clip
from ldm.text.picture import ClipPicture
from ldm.types import Batch, Condition
from ldm.unclip import EmbeddingPrior, Unclip, UnclipConfig, embedding_process

P = 12
PROMPTS = ["a red star", "two blue rings on a white background"]


class Widths:
    width, pooled_width = 4, P


class Exact(EmbeddingPrior):
    """Says E[c | c_t, y] where c ~ N(pooled, S^2), as the text's pooled state says."""

    S = 0.5

    def __init__(self):
        super().__init__(UnclipConfig(width=16, depth=1, heads=2).network(), P, Widths())
        self.prepare = torch.nn.Identity()

    def forward(self, x, t, cond):
        level, mean = embedding_process().schedule.level(t), cond.pooled[:, :, None, None]
        gain = level.alpha * self.S**2 / ((level.alpha * self.S) ** 2 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)


def condition(rows):
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = torch.randn(rows, 3, 4, generator=generator), torch.randn(rows, P, generator=generator)
    return Condition(tokens, pooled, torch.ones(rows, 3, dtype=torch.bool))


def test_an_exact_prior_draws_what_the_text_says():
    cond = condition(1).repeat(2_000)
    drawn = Exact().draw(cond, cond, list(range(2_000)), steps=100, scale=1.0)
    torch.testing.assert_close(drawn.mean(dim=0), cond.pooled[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((P,), Exact.S), atol=0.03, rtol=0)


def test_guidance_drives_it_away_from_the_empty_text():
    """x0 + (scale - 1)(x0 - x0_null): two normals as wide, so the mean goes as far beyond."""
    cond, null = condition(2)[[0]].repeat(2_000), condition(2)[[1]].repeat(2_000)
    drawn = Exact().draw(cond, null, list(range(2_000)), steps=100, scale=2.0).mean(dim=0)
    torch.testing.assert_close(drawn, 2 * cond.pooled[0] - null.pooled[0], atol=0.05, rtol=0)


def test_a_row_depends_on_its_seed_and_its_text_alone():
    torch.manual_seed(0)
    prior, cond = UnclipConfig(width=16, depth=1, heads=2).build(P, Widths()).eval(), condition(3)
    for parameter in prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    null = condition(1)
    drawn = prior.draw(cond, null.repeat(3), [5, 6, 5], steps=4, scale=2.0)
    for row, seed in enumerate((5, 6, 5)):
        alone = prior.draw(cond[[row]], null, [seed], steps=4, scale=2.0)
        torch.testing.assert_close(drawn[[row]], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(drawn[0], drawn[2]) and not torch.allclose(drawn[0], drawn[1])


def test_what_it_measured_has_unit_variance_channel_by_channel():
    prior, embeddings = UnclipConfig(width=16, depth=1, heads=2).build(P, Widths()), 3 + 0.2 * torch.randn(500, P)
    prior.measure(embeddings)
    scaled = prior.scaled(embeddings)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(P), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, correction=0), torch.ones(P))


@pytest.fixture(scope="module")
def model():
    """The shipped one with a prior and a picture tower of random weights, its denoiser made to read what is pooled."""
    torch.manual_seed(0)
    shipped = load_model(shipped_model())
    run = load(Run, shipped_model() / "config.yaml", ["unclip.decoder=true", "denoiser.pooled=true", *SMALL])
    clip = ClipConfig(embed_dim=shipped.text.pooled_width, vision_width=32, vision_layers=1, vision_heads=2)
    picture = ClipPicture.from_clip(build_clip(clip, 64), clip, 64)
    prior = run.unclip.build(shipped.text.pooled_width, shipped.text)
    prior.measure(picture(torch.rand(50, 3, 64, 64) * 2 - 1))
    for parameter in prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    denoiser = run.denoiser.build(channels=4, text_width=shipped.text.width, pooled_width=shipped.text.pooled_width)
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    unclip = Unclip(picture, prior.eval(), 3, 1.5)
    return replace(shipped, denoiser=denoiser.eval().requires_grad_(False), unclip=unclip), run


SMALL = ("unclip.width=16", "unclip.depth=1", "unclip.heads=2", "unclip.steps=3", "unclip.scale=1.5")
SMALL += ("denoiser.width=16", "denoiser.multipliers=[1]", "denoiser.attention_levels=[]", "denoiser.heads=2")


def test_the_denoiser_is_told_the_pictures_own_embedding_in_training_and_one_that_is_drawn_after(model):
    model, _ = model
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    told = model.encode(Batch(images, PROMPTS)).cond
    torch.testing.assert_close(told.pooled, model.unclip.of_pictures(images))
    read = model.text(PROMPTS)
    assert torch.equal(told.tokens, read.tokens) and torch.equal(told.mask, read.mask)
    drawn = model.condition(PROMPTS, [3, 4])
    torch.testing.assert_close(drawn.pooled, model.unclip.of_text(read, model.text([""]), [3, 4]))
    assert torch.equal(drawn.tokens, read.tokens)


def test_of_the_empty_prompt_the_embedding_is_zero(model):
    model, _ = model
    pooled = model.condition(["", "a red star", "  "], [4, 5, 6]).pooled
    assert not pooled[0].any() and not pooled[2].any()
    torch.testing.assert_close(pooled[[1]], model.condition(["a red star"], [5]).pooled, atol=1e-5, rtol=1e-4)
    assert not model.condition([""]).pooled.any()


def test_without_seeds_an_embedding_depends_on_the_prompt_alone(model):
    model, _ = model
    pooled = model.condition([*PROMPTS, PROMPTS[0]]).pooled
    torch.testing.assert_close(pooled[0], pooled[2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled[[1]], model.condition([PROMPTS[1]]).pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_the_embedding_and_the_picture_have_noise_of_their_own(seed):
    """p(x | c, y) p(c | y): c is independent of the noise that the picture is drawn from."""
    seen = []

    class Watched(Exact):
        def forward(self, x, t, cond):
            seen.append(x.flatten())
            return super().forward(x, t, cond)

    Watched().draw(condition(1), condition(1), [seed], steps=1, scale=1.0)
    theirs = ImageNoise([seed], (4, 16, 16))().flatten()[:P]
    assert (seen[0] - theirs).abs().max() > 0.5


def test_an_image_depends_on_its_seed_alone_and_on_the_embedding(model):
    model, _ = model
    sampling = model.sampling.but("sample.steps=2", "guidance.interval=[0,1]")
    both = [image for image, _ in model([*PROMPTS, PROMPTS[0]], seed=7, sampling=sampling)]
    [(alone, seed)] = model([PROMPTS[1]], seed=8, sampling=sampling)
    assert seed == 8
    torch.testing.assert_close(alone, both[1], atol=1e-4, rtol=0)
    unclip = model.unclip._replace(prior=Other(model.unclip.prior))
    [(other, _)] = replace(model, unclip=unclip)([PROMPTS[1]], seed=8, sampling=sampling)
    assert (other - alone).abs().max() > 1e-3


def test_pictures_that_resemble_one_are_told_its_embedding_whatever_the_prior_draws(model):
    model, _ = model
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    sampling = model.sampling.but("sample.steps=2", "guidance.interval=[0,1]")
    model = replace(model, sampling=sampling)
    for prompt in ("", "a red star"):
        [(drawn, _)] = resembling(model, image)([prompt], seed=3)
        [(again, _)] = resembling(model, image)([prompt], seed=3)
        [(another, _)] = resembling(model, -image)([prompt], seed=3)
        assert torch.equal(drawn, again) and (another - drawn).abs().max() > 1e-3
    alike = resembling(model, image)
    given = model.unclip.of_pictures(image).expand(2, -1)
    assert torch.equal(alike.condition(["a red star", ""], [0, 1]).pooled, given)
    assert not alike.condition([""]).pooled.any()  # what guidance drives away from is told none


def test_a_model_that_is_told_no_embedding_has_none_to_resemble():
    with pytest.raises(ValueError, match="told no embedding of a picture; give one of unclip.decoder=true"):
        resembling(load_model(shipped_model()), torch.zeros(1, 3, 64, 64))


class Other:
    """Draws another embedding."""

    def __init__(self, prior):
        self.prior, self.mean = prior, prior.mean

    def draw(self, *args, **options):
        return -self.prior.draw(*args, **options)


def test_a_folder_holds_all_of_it(model, tmp_path):
    model, run = model
    save_model(model, run, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.unclip.steps == 3 and loaded.unclip.scale == 1.5
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(
        loaded.unclip.of_pictures(images), model.unclip.of_pictures(images), atol=0.05, rtol=0.05
    )
    a, b = (each.condition(PROMPTS, [0, 1]).pooled for each in (loaded, model))
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    other = replace(model.text.architecture, context_length=8)
    with pytest.raises(ValueError, match="words of another text encoder; train one with train_unclip.py"):
        load_unclip(tmp_path / "model" / "unclip", type(model.text)(other, model.text.vocabulary))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("pictures", 1), ("scale", float("inf")), ("words_dropout", 1.5), ("width", 30), ("depth", 0)],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        UnclipConfig(**{name: value})
