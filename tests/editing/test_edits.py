"""Edits of pictures with a whole model, the shipped one."""

import pytest
import torch

from ldm.data.shapes import ShapesConfig
from ldm.data.transforms import to_bytes
from ldm.editing import Blur, Downscale, Masked, ResamplingConfig, filled, followed, restored, reworded, varied
from ldm.evaluation.reader import read
from ldm.folders import load_model, shipped_model
from ldm.types import Key

STEPS = "sample.steps=15"


@pytest.fixture(scope="module")
def model():
    return load_model(shipped_model())


@pytest.fixture(scope="module")
def sample():
    return ShapesConfig().build("val")[Key(0, 3)]


def drawn(model, sample, count=1, **how):
    sampling = model.sampling.but(STEPS, "guidance.scale=1", "sampler.eta=1")
    return torch.cat([image for image, _ in model([sample.caption] * count, sampling=sampling, seed=1, **how)])


def psnr(image, other):
    return 10 * torch.log10(4 / (image - other).square().mean()).item()


def things(image):
    [scene] = read(to_bytes(image))
    return sorted((thing.shape, thing.color) for thing in scene.objects)


def test_a_variation_is_the_nearer_the_less_its_strength(model, sample):
    image = sample.image[None]
    errors = [psnr(image, drawn(model, sample, 2, walk=varied(model, image, strength))) for strength in (0.0, 0.3, 1.0)]
    assert errors[0] > 28 and errors[0] >= errors[1] > errors[2]
    nothing = drawn(model, sample)
    torch.testing.assert_close(drawn(model, sample, walk=varied(model, image, 1.0)), nothing)


def test_a_picture_with_its_own_words_comes_back_and_other_words_change_it(model, sample):
    image = sample.image[None]
    walk = reworded(model, image, sample.caption, 0.7)
    kept = drawn(model, sample, walk=walk)
    assert psnr(image, kept) > 25
    words = sample.caption.replace("yellow", "blue")
    sampling = model.sampling.but(STEPS)
    same, other = (image for image, _ in model([sample.caption, words], sampling=sampling, walk=walk))
    assert things(same) == things(image)
    assert things(image) == [("diamond", "red"), ("ring", "yellow")]
    assert things(other) == [("diamond", "red"), ("ring", "blue")]
    assert psnr(image[..., :32], other[..., :32]) > 28, "what the words agree on stays where it was"


@pytest.mark.parametrize("resampling", [None, ResamplingConfig(jump=5, times=2)])
def test_what_a_mask_keeps_stays_and_the_rest_is_drawn(model, sample, resampling):
    image, mask = sample.image[None], torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    steer, walk = filled(model, image, mask, resampling)
    got = drawn(model, sample, steer=steer, walk=walk)
    assert psnr(image[..., :24], got[..., :24]) > 25, "the decoder looks a little over the mask's edge"
    assert not torch.allclose(got, drawn(model, sample), atol=0.1)


def test_what_a_mask_hides_changes_nothing(model, sample):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:50, 20:50] = 1
    image = sample.image[None]
    other = torch.where(mask > 0, torch.rand_like(image) * 2 - 1, image)
    (steer, walk), (steer_other, walk_other) = (filled(model, each, mask) for each in (image, other))
    got = drawn(model, sample, steer=steer, walk=walk)
    assert torch.equal(got, drawn(model, sample, steer=steer_other, walk=walk_other))


@pytest.mark.parametrize(
    "operator", [Downscale(4), Masked.random(64, 64, 0.5, seed=0), Blur(3.0, (64, 64))], ids=lambda o: type(o).__name__
)
def test_a_restored_picture_is_nearer_to_the_truth_than_its_measurement(model, sample, operator):
    image = sample.image[None]
    y = operator.apply(image)
    seen = psnr(image, operator.pseudo_inverse(y))
    for restoration in drawn(model, sample, 2, steer=restored(model, operator, y)).split(1):
        assert psnr(image, restoration) > seen + 5


def test_following_the_gradient_comes_nearer_to_the_measurement_than_not(model, sample):
    operator = Downscale(8)
    y = operator.apply(sample.image[None])
    misses = [
        (operator.apply(drawn(model, sample, 3, **how)) - y).square().mean()
        for how in ({"steer": followed(model, operator, y)}, {})
    ]
    assert misses[0] < 0.9 * misses[1]
