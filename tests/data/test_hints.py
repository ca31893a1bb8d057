"""What is kept of a picture to be followed, by pictures whose answer is plain."""

import pytest
import torch

from ldm.data.hints import HINTS, coarse, edges, gray


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("size", [(64, 64), (20, 36), (5, 3)])
def test_a_hint_is_a_picture_of_the_same_size_in_range(name, size):
    image = torch.rand(2, 3, *size) * 2 - 1
    hint = HINTS[name](image)
    assert hint.shape == image.shape and hint.abs().max() <= 1 + 1e-6
    assert torch.equal(hint[:1], HINTS[name](image[:1]))


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


def test_coarse_squares_are_means():
    image = torch.rand(1, 3, 16, 24)
    found = coarse(image)
    torch.testing.assert_close(found[0, :, 0, 0], image[0, :, :8, :8].mean(dim=(1, 2)))
    torch.testing.assert_close(found[0, :, 15, 23], image[0, :, 8:, 16:].mean(dim=(1, 2)))
    assert len(found.unique(dim=3, return_counts=True)[1]) == 3


def test_gray_keeps_gray_and_has_the_weights_of_rec_601():
    same = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(gray(same), same)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert gray(red).flatten().tolist() == pytest.approx([0.299] * 3)
