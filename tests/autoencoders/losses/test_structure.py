"""SSIM and MS-SSIM against torchmetrics', and what they do where those are not defined."""

import pytest
import torch
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torchmetrics_ms_ssim
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim

from ldm.autoencoders.losses.structure import SHARES, ms_ssim, num_scales, ssim

SIZES = [(16, 16, 1), (31, 24, 2), (45, 70, 3), (64, 64, 3), (100, 120, 4), (177, 190, 5)]  # height, width, scales


def pair(height, width, noise=0.2):
    torch.manual_seed(height)
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, (height, width), mode="bilinear")
    return image, (image + noise * torch.randn_like(image)).clamp(-1, 1)


def composed(x, y, scales):
    """The product from torchmetrics' maps of each scale, without the windows that reach over the edge."""
    product, total = 1.0, sum(SHARES[:scales])
    for scale, share in enumerate(SHARES[:scales]):
        if scale == scales - 1:
            found = torchmetrics_ssim(x, y, data_range=2.0, reduction="none", return_full_image=True)[1]
            found = found[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        else:
            found = torchmetrics_ssim(x, y, data_range=2.0, reduction="none", return_contrast_sensitivity=True)[1]
        product = product * found ** (share / total)
        x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
    return product


@pytest.mark.parametrize(("height", "width"), [(6, 8), (31, 24), (64, 64)])
def test_ssim_is_torchmetrics(height, width):
    a, b = pair(height, width)
    wanted = torchmetrics_ssim(a.double() + 1, b.double() + 1, data_range=2.0, reduction="none")
    torch.testing.assert_close(ssim(a, b), wanted, atol=1e-5, rtol=0)  # its window is of single precision


def test_a_plain_picture_is_wholly_like_itself():
    flat = torch.full((3, 3, 32, 32), 0.7)
    torch.testing.assert_close(ssim(flat, flat), torch.ones(3, dtype=torch.float64))


def test_the_scales_weigh_what_wang_simoncelli_and_bovik_found():
    assert SHARES == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@pytest.mark.parametrize(("height", "width", "scales"), SIZES)
def test_it_is_composed_of_torchmetrics_ssim_at_as_many_scales(height, width, scales):
    a, b = pair(height, width)
    assert num_scales(height, width) == scales
    found = ms_ssim(a, b)
    assert found.shape == (2,) and (found < 0.99).all()
    torch.testing.assert_close(found, composed(a + 1, b + 1, scales), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("height", "width", "scales"), [size for size in SIZES if size[2] >= 4])
def test_it_is_torchmetrics_own_but_for_what_that_averages_beyond_the_edge(height, width, scales):
    a, b = pair(height, width)
    betas = tuple(share / sum(SHARES[:scales]) for share in SHARES[:scales])
    wanted = torchmetrics_ms_ssim(a + 1, b + 1, data_range=2.0, betas=betas, reduction="none")
    torch.testing.assert_close(ms_ssim(a, b), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [16, 17, 40, 64])
def test_an_image_is_like_itself_and_the_less_like_another_the_more_noise_that_has(size):
    image, flat = pair(size, size)[0], torch.full((2, 3, size, size), -1.0)
    for same in (image, flat):
        torch.testing.assert_close(ms_ssim(same, same), torch.ones(2))
    noisy = [ms_ssim(*pair(size, size, noise=noise)) for noise in (0.05, 0.2, 0.8)]
    assert (noisy[0] > noisy[1]).all() and (noisy[1] > noisy[2]).all()


@pytest.mark.parametrize("other", ["flat", "black", "inverted", "beyond"])
def test_its_gradient_is_finite_where_nothing_is_alike(other):
    image, _ = pair(64, 64)
    values = {"flat": 0 * image, "black": 0 * image - 1, "inverted": -image, "beyond": 40 * image}[other]
    values = values.clone().requires_grad_()
    ms_ssim(values, image).sum().backward()
    assert values.grad.isfinite().all()


def test_smaller_images_than_the_window_are_refused():
    with pytest.raises(ValueError, match="images of 30 x 10 pixels: MS-SSIM needs sides of at least 11"):
        ms_ssim(*pair(10, 30))
    with pytest.raises(ValueError, match="images of 30 x 5 pixels: SSIM needs sides of at least 6"):
        ssim(*pair(5, 30))
