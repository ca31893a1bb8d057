"""What is kept of a picture to be followed, by pictures whose answer is plain."""

import pytest
import torch

from ldm.data.hints import HINTS, edges, enlarged, gray, means, with_noise


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("size", [(64, 64), (20, 36), (5, 3)])
def test_a_hint_is_a_picture_in_range_that_fills_the_size_of_the_picture(name, size):
    image, (of, factor) = torch.rand(2, 3, *size) * 2 - 1, HINTS[name]
    hint = of(image)
    assert hint.shape == (2, 3, *(-(-length // factor) for length in size)) and hint.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(hint[:1], of(image[:1]))
    assert enlarged(hint, factor, size).shape == image.shape


def test_edges_are_where_black_meets_white_and_nowhere_else():
    image = torch.full((1, 3, 8, 8), -1.0)
    image[..., 4:] = 1
    found = edges(image)
    assert torch.equal(found[..., 3:5], torch.ones(1, 3, 8, 2))
    assert torch.equal(found[..., [0, 1, 2, 5, 6, 7]], -torch.ones(1, 3, 8, 6))
    assert torch.equal(edges(image.transpose(2, 3)), found.transpose(2, 3))


def test_an_edge_between_colours_as_bright_as_each_other_is_seen():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :, 2:], image[:, 1, :, 2:] = 0.5, -0.5 * 0.299 / 0.587
    assert gray(image).std() < 1e-6
    assert edges(image)[..., 1:3].min() > -1


def test_squares_are_means_also_at_the_edges_where_they_are_smaller():
    image = torch.rand(1, 3, 16, 20)
    found = means(image, 8)
    torch.testing.assert_close(found[0, :, 0, 0], image[0, :, :8, :8].mean(dim=(1, 2)))
    torch.testing.assert_close(found[0, :, 1, 2], image[0, :, 8:, 16:].mean(dim=(1, 2)))
    torch.testing.assert_close(enlarged(found, 8, (16, 20))[0, :, 8:, 16:].std(dim=(1, 2)), torch.zeros(3))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_means_of_what_was_enlarged_are_what_it_was(factor):
    small = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(means(enlarged(small, factor, (6 * factor, 5 * factor)), factor), small)


def test_noise_on_a_hint_keeps_its_variance_and_is_told():
    torch.manual_seed(0)
    hint, noise, level = torch.randn(3, 3, 64, 64), torch.randn(3, 3, 64, 64), torch.tensor([0.0, 0.5, 1.0])
    seen = with_noise(hint, level, noise)
    assert seen.shape == (3, 4, 64, 64)
    assert torch.equal(seen[0, :3], hint[0]) and torch.equal(seen[2, :3], noise[2])
    assert seen[:, :3].flatten(1).std(dim=1).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert torch.equal(seen[:, 3], level.view(-1, 1, 1).expand(3, 64, 64))


def test_gray_keeps_gray_and_has_the_weights_of_rec_601():
    same = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(gray(same), same)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert gray(red).flatten().tolist() == pytest.approx([0.299] * 3)
