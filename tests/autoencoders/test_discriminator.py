"""The discriminator: sizes, what a logit sees, and that an image is judged by itself."""

import pytest
import torch

from ldm.autoencoders.discriminator import AdversarialConfig
from ldm.config import load
from ldm.run import Run

SEES = {1: 16, 2: 34, 3: 70}  # pixels along a side, by layers


def built(**options):
    return AdversarialConfig(width=8, **options).build()


@pytest.mark.parametrize("layers", SEES)
@pytest.mark.parametrize("size", [24, 64, 70])
def test_a_logit_for_each_patch(layers, size):
    side = size // 2**layers - 2
    assert built(layers=layers)(torch.rand(2, 3, size, size)).shape == (2, 1, side, side)


@pytest.mark.parametrize(("layers", "sees"), SEES.items())
def test_a_logit_sees_as_many_pixels_as_the_configuration_says(layers, sees):
    network, image = built(layers=layers), torch.rand(1, 3, 160, 160, requires_grad=True)
    for part in network:  # norms share their statistics among all patches
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = lambda x: x
    logits = network(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == sees


def test_an_image_is_judged_alike_alone_and_among_others():
    network, images = built(), torch.rand(3, 3, 32, 32)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone)


def test_every_parameter_is_trained():
    network = built()
    network(torch.rand(1, 3, 24, 24)).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_images_that_are_allowed_have_a_logit_and_smaller_ones_are_refused(layers):
    config = AdversarialConfig(weight=1.0, width=8, layers=layers)
    least = 3 * 2**layers
    config.check(least)
    assert config.build()(torch.rand(1, 3, least, least)).numel() == 1
    with pytest.raises(ValueError, match=rf"images of {least - 1} pixels; try layers={max(1, layers - 1)}"):
        config.check(least - 1)
    AdversarialConfig(layers=layers).check(1)  # none is built


def test_too_many_layers_are_told_before_anything_is_loaded():
    with pytest.raises(ValueError, match="adversarial: layers 5 leave nothing of images of 64 pixels; try layers=4"):
        load(Run, None, ["adversarial.weight=0.5", "adversarial.layers=5"])


@pytest.mark.parametrize("start", [8, 9])
def test_a_start_that_never_comes_is_told_with_both_values(start):
    settings = ["train_autoencoder.steps=8", f"adversarial.start={start}"]
    told = rf"adversarial.start {start} .* train_autoencoder.steps 8, .*; try adversarial.start=4, or more steps"
    run = load(Run, None, [*settings, "adversarial.weight=0.5"])  # as a saved one
    with pytest.raises(ValueError, match=told):
        run.check_autoencoder()
    load(Run, None, settings).check_autoencoder()  # none is built
    load(Run, None, [*settings, "adversarial.weight=0.5", "adversarial.start=7"]).check_autoencoder()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", -1.0),
        ("weight", float("nan")),
        ("start", -1),
        ("width", 0),
        ("layers", 0),
        ("lr", 0.0),
        ("r1", float("inf")),
        ("r1_every", 0),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} {value} .*; try {name}="):
        AdversarialConfig(**{name: value})
