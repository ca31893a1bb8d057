"""Text to image with a tiny model of random weights: what an image depends on, and what it does not."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from models import random_model

from ldm.denoisers import DENOISERS
from ldm.files import BrokenFile
from ldm.folders import shipped_model
from ldm.pipeline import MAX_SIDE, TextToImage, from_noise
from ldm.samplers import SAMPLERS
from ldm.sampling import Sampling

PROMPTS = [
    "a red star",
    "",
    "two small green rings on a white background",
    "a heart",
    "a picture of a large orange cross to the left of a blue square",
    "🟥 звезда ../../etc",
    "four purple diamonds",
    "word " * 1_000,
]
TWO_STEPS = Sampling().but("sample.steps=2")
UNET = ["denoiser.width=32", "denoiser.multipliers=[1,2]", "denoiser.blocks=1", "denoiser.heads=2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model with each of the denoisers, of tiny size."""
    from conftest import TINY

    common = ["autoencoder.multipliers=[1]", *(each for each in TINY if not each.startswith("denoiser"))]
    sizes = {"dit": [override for override in TINY if override.startswith("denoiser.")], "unet": UNET}
    folder = tmp_path_factory.mktemp("models")
    return {
        name: TextToImage.load(
            random_model(folder / name, PROMPTS, *common, f"denoiser.name={name}", *sizes.get(name, ()))
        )
        for name in DENOISERS
    }


@pytest.fixture(scope="module")
def model(models):
    return models["dit"]


def draw(model, prompts, size=(16, 16), **options):
    """The images (B, 3, H, W) of the prompts."""
    return torch.cat([image for image, _ in model(prompts, size=size, **options)])


def together_and_alone(model, sampler, scale, **options):
    """Images out of a batch of eight, and the same each by itself, both (B, 3, H, W)."""
    sampling = Sampling().but(f"sampler={sampler}", "sample.steps=4", f"guidance.scale={scale}", "sample.batch=8")
    if sampler == "ode":
        sampling = sampling.but("sampler.rtol=0.3", "sampler.atol=0.3")  # for speed
    together = draw(model, PROMPTS, seed=5, sampling=sampling, **options)
    assert together.std() > 0.05
    rows = [0, 1, len(PROMPTS) - 1]
    alone = [draw(model, [PROMPTS[i]], seed=5 + i, sampling=sampling, **options) for i in rows]
    return together[rows], torch.cat(alone)


@pytest.fixture(scope="module")
def doubles(models):
    """The same models with text and denoiser in double precision."""
    return {
        name: replace(model, denoiser=deepcopy(model.denoiser).double(), text=deepcopy(model.text).double())
        for name, model in models.items()
    }


def in_double(sampler, denoise, grid, noise):
    """Single-precision latents from noise, every step in double precision."""
    return from_noise(sampler, denoise, grid, lambda: noise().double()).float()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("sampler", [name for name, kind in SAMPLERS.items() if not hasattr(kind, "one_by_one")])
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_an_image_is_the_same_alone_and_in_a_batch_of_eight(doubles, denoiser, sampler, scale):
    """Fault 35, without the rounding of single precision, which differs with the size of a batch."""
    together, alone = together_and_alone(doubles[denoiser], sampler, scale, walk=in_double)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_single_precision_keeps_an_image_nearly_the_same_in_a_batch_of_eight(models, denoiser, sampler, scale):
    """Fault 35."""
    together, alone = together_and_alone(models[denoiser], sampler, scale)
    # samplers in terms of the noise magnify rounding where there is hardly a signal
    of_x0 = ("ddim", "ddpm", "euler", "euler_ancestral", "dpm_solver_pp", "unipc", "ode")
    atol = 1e-5 if sampler in of_x0 else 1e-3
    torch.testing.assert_close(together, alone, atol=atol, rtol=0)


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_half_precision_draws_what_autocast_alone_does_and_puts_the_weights_back(models, denoiser, monkeypatch):
    model, seen = models[denoiser], []
    layers = [module for module in model.denoiser.modules() if isinstance(module, torch.nn.Linear)]
    weights = [layer.weight for layer in layers]

    def steer(denoise, prompts):
        seen.extend(layer.weight.dtype for layer in layers)
        assert {weight.dtype for weight in weights} == {torch.float32}  # which others, such as DDP, may hold
        return denoise

    options = {"size": (16, 16), "sampling": TWO_STEPS.but("guidance.scale=4"), "precision": "bf16"}
    before = [weight.clone() for weight in weights]
    drawn = model(PROMPTS[:2], **options, steer=steer)
    first, _ = next(drawn)
    assert seen and {*seen} == {torch.bfloat16} and not torch.is_autocast_enabled("cpu")
    assert all(layer.weight is weight for layer, weight in zip(layers, weights, strict=True))
    assert all(torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))
    images = torch.cat([first, *(image for image, _ in drawn)])
    monkeypatch.setattr(TextToImage, "autocast", lambda self, precision: torch.autocast("cpu", torch.bfloat16))
    assert torch.equal(images, draw(model, PROMPTS[:2], **options))


def test_weights_are_put_back_where_drawing_ends_in_an_error(model):
    def steer(denoise, prompts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(model(PROMPTS[:1], size=(16, 16), precision="bf16", steer=steer))
    assert {weight.dtype for weight in model.denoiser.parameters()} == {torch.float32}


def test_steps_that_suit_an_image_are_its_own(model):
    """Fault 35, with a tolerance so tight that images ask for steps of different lengths."""
    sampling = TWO_STEPS.but("sampler=ode", "sampler.rtol=1e-4", "sampler.atol=1e-4", "sample.batch=8")
    together = draw(model, PROMPTS[:3], seed=5, sampling=sampling)
    alone = [draw(model, [PROMPTS[i]], seed=5 + i, sampling=sampling) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_number_of_images_drawn_at_once_changes_nothing(model, batch):
    usual = list(model(PROMPTS, seed=2, size=(16, 16)))
    other = list(model(PROMPTS, seed=2, size=(16, 16), sampling=model.sampling.but(f"sample.batch={batch}")))
    assert [seed for _, seed in other] == [seed for _, seed in usual] == list(range(2, 10))
    for (a, _), (b, _) in zip(usual, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_decoding_in_tiles_draws_the_same_but_for_faint_seams(model):
    factor = model.autoencoder.factor
    size, tiled = (40 * factor, 32 * factor), model.sampling.but(f"sample.tile={16 * factor}")
    usual, other = draw(model, PROMPTS[:1], size=size), draw(model, PROMPTS[:1], size=size, sampling=tiled)
    assert 0 < (usual - other).abs().mean() < 0.1
    with pytest.raises(ValueError, match=r"tile 1 is too small"):
        draw(model, PROMPTS[:1], size=size, sampling=model.sampling.but("sample.tile=1"))


def test_the_same_call_draws_the_same_image_whatever_was_drawn_before(model):
    first = draw(model, PROMPTS[:2])
    torch.manual_seed(99), torch.rand(7)
    assert torch.equal(draw(model, PROMPTS[:2]), first)


def different(a, b):
    return (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"negative": "blue square"},
        *(
            {"sampling": TWO_STEPS.but(change)}
            for change in (
                "sample.steps=3",
                "guidance.scale=3",
                "guidance.interval=[0.6,1.0]",
                "guidance.rescale=0.5",
                "sampler.eta=0.5",
                "sampler=euler_ancestral",
                "grid=quadratic",
            )
        ),
    ],
    ids=str,
)
def test_every_setting_changes_the_image(model, change):
    plain = {"sampling": TWO_STEPS}
    assert different(draw(model, ["a red star"], **{**plain, **change}), draw(model, ["a red star"], **plain))


def test_the_prompt_changes_the_image(model):
    first, *others = (draw(model, [prompt]) for prompt in PROMPTS)
    assert all(different(first, other) for other in others)


def test_without_guidance_the_negative_prompt_does_not_count(model):
    sampling = TWO_STEPS.but("guidance.scale=1")
    with_negative = draw(model, ["a red star"], negative="blue square", sampling=sampling)
    assert torch.equal(with_negative, draw(model, ["a red star"], sampling=sampling))


def test_a_prompt_as_its_own_negative_is_a_prompt_without_guidance(model):
    ours = draw(model, ["a red star"], negative="a red star", sampling=TWO_STEPS.but("guidance.scale=7"))
    torch.testing.assert_close(ours, draw(model, ["a red star"], sampling=TWO_STEPS.but("guidance.scale=1")))


def test_ddpm_is_ddim_with_eta_one(model):
    ddpm, ddim = (
        draw(model, ["a ring"], sampling=TWO_STEPS.but(*sampler)) for sampler in (["sampler=ddpm"], ["sampler.eta=1"])
    )
    torch.testing.assert_close(ddpm, ddim)


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
def test_images_have_the_size_and_range_asked_for(model, size):
    drawn = draw(model, PROMPTS[:2], size=size)
    assert drawn.shape == (2, 3, *size)
    assert drawn.isfinite().all() and drawn.abs().max() <= 1
    assert not drawn.requires_grad


@pytest.mark.parametrize("denoiser", DENOISERS)
def test_a_size_that_does_not_fit_is_refused_before_anything_is_drawn(models, denoiser):
    model, steps = models[denoiser], []
    for height, width, wrong in (
        (16, 18, "width 18"),
        (0, 16, "height 0"),
        (16, -8, "width -8"),
        (20, 16, "height 20"),
    ):
        with pytest.raises(ValueError, match=f"{wrong} is not a multiple of 8") as caught:
            next(model(["a ring"], size=(height, width), progress=steps.append))
        near = int(str(caught.value).split()[-1])
        assert draw(model, ["a ring"], size=(near, near)).shape[2:] == (near, near)
    assert not steps


def test_a_size_beyond_all_memory_is_refused(model):
    with pytest.raises(ValueError, match=f"height 1000000 is not .* up to {MAX_SIDE}; try {MAX_SIDE}"):
        next(model(["a ring"], size=(1_000_000, 64)))


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_progress_counts_every_step_of_every_image(model, sampler):
    steps = []
    sampling = TWO_STEPS.but(f"sampler={sampler}", "sample.steps=3", "sample.batch=5")
    draw(model, PROMPTS, sampling=sampling, progress=steps.append)
    assert steps == [5, 5, 5, 3, 3, 3]


def test_no_prompts_give_no_images(model):
    assert list(model([])) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("sample.steps=0", "steps 0"),
        ("sample.batch=0", "batch 0"),
        ("sample.clip=-1", "clip -1.0 is not a number from 0"),
        ("sample.clip=inf", "clip inf is not a number from 0"),
        ("guidance.scale=.nan", "scale nan"),
        ("guidance.scale=.inf", "scale inf"),
        ("guidance.interval=[0.5]", "interval"),
        ("sampler.eta=-0.5", "eta -0.5"),
        ("sampler.eta=.inf", "eta inf"),
        ("sampler.eta=.nan", "eta nan"),
        ("sampler=dimm", "did you mean 'ddim'"),
        ("grid=karas", "did you mean 'karras'"),
        ("sampler.order=2", "sampler.order: no such key"),
        ("data.size=3", "unknown section 'data'"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Sampling().but(wrong)


def test_what_is_laid_over_settings_leaves_the_others_and_the_settings_themselves():
    base = Sampling().but("sampler.eta=0.5", "guidance.scale=3")
    changed = base.but("sample.steps=7")
    assert (changed.sampler.eta, changed.guidance.scale, changed.sample.steps) == (0.5, 3.0, 7)
    assert base.sample.steps == 50
    assert base.but("sampler=ddim").sampler.eta == 0.5, "a sampler named again keeps its options"


def test_a_runs_folder_is_answered_with_its_models(tmp_path):
    shutil.copytree(shipped_model(), tmp_path / "run" / "model")
    with pytest.raises(BrokenFile, match=f"run is not a model folder: .*; give {tmp_path / 'run' / 'model'}"):
        TextToImage.load(tmp_path / "run")


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(BrokenFile, match=f"{tmp_path} is not a model folder"):
        TextToImage.load(tmp_path)


def test_x0_is_cut_before_anything_else_steers(model):
    seen = []

    def steer(denoise, prompts):
        def pushed(x, level):
            said = denoise(x, level)
            seen.append(said.x0.abs().max())
            return said._replace(x0=said.x0 + 1)

        return pushed

    latents = []

    def walk(sampler, denoise, grid, noise):
        latents.append(from_noise(sampler, denoise, grid, noise))
        return latents[-1]

    sampling = TWO_STEPS.but("sampler=ddim", "sample.clip=0.01", "guidance.scale=3", "guidance.interval=[0,1]")
    draw(model, PROMPTS[:2], sampling=sampling, steer=steer, walk=walk)
    assert len(seen) == 2 and max(seen) <= 0.01 + 1e-6
    assert (latents[0] - 1).abs().max() <= 0.01 + 1e-6, "what steers is not cut"
