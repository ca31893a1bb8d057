import pytest
import torch

from ldm.denoisers.embeddings import position_embedding, timestep_embedding

CPU = torch.device("cpu")


def test_time_zero_is_all_ones_then_all_zeros() -> None:
    assert torch.equal(timestep_embedding(torch.zeros(1), 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]]))


def test_timestep_embedding_is_that_of_diffusers_at_a_thousand_times_t() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0])
    expected = embeddings.get_timestep_embedding(1000 * t, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, 32), expected)


def test_nearby_times_and_places_are_told_apart() -> None:
    times = timestep_embedding(torch.linspace(0, 1, 1001), 64)
    assert torch.pdist(times).min() > 0.1
    assert torch.pdist(position_embedding(32, 32, 64, CPU)).min() > 0.1


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 6), (1, 5)])
def test_positions_are_centred_on_the_grid(height: int, width: int) -> None:
    sines, cosines = position_embedding(height, width, 32, CPU).reshape(height, width, 2, 2, 8).unbind(dim=3)
    torch.testing.assert_close(sines, -sines.flip(0, 1))
    torch.testing.assert_close(cosines, cosines.flip(0, 1))


def test_a_finer_grid_interpolates_a_coarser_one() -> None:
    slow = slice(4, 8)  # the lowest frequencies, near linear between neighbours
    coarse = position_embedding(8, 8, 32, CPU).reshape(8, 8, 2, 2, 8)[..., slow]
    fine = position_embedding(16, 16, 32, CPU).reshape(8, 2, 8, 2, 2, 2, 8)[..., slow].mean(dim=(1, 3))
    torch.testing.assert_close(fine, coarse, atol=0.01, rtol=0)


def test_positions_made_while_sampling_serve_training() -> None:
    with torch.inference_mode():
        place = position_embedding(3, 7, 16, CPU)
    x = torch.ones(21, 16, requires_grad=True)
    ((x + place) ** 2).sum().backward()
    assert x.grad is not None
