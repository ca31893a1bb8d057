"""Codebooks' sums, smoothed counts and k-means."""

from itertools import pairwise

import torch

from ldm.autoencoders.bottlenecks import clusters
from ldm.autoencoders.bottlenecks.clusters import k_means, nearest, pick, smoothed, tally

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def blobs(each=50):
    return torch.cat([centre + 0.1 * torch.randn(each, 2) for centre in CENTRES])


def test_the_nearest_code_is_the_one_at_the_least_distance():
    x, book = torch.randn(3, 4, 5), torch.randn(7, 5)
    distances = (x[:, :, None] - book).square().sum(dim=-1)  # (3, 4, 7)
    assert torch.equal(nearest(x, book), distances.argmin(dim=-1))


def test_the_nearest_code_is_sought_in_single_precision_under_autocast():
    x, book = torch.randn(500, 8), torch.randn(200, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(x, book)
    assert torch.equal(found, nearest(x, book))


def test_a_tally_counts_and_sums_by_code():
    x, indices = torch.randn(20, 3), torch.randint(4, (20,))
    counts, sums = tally(x, indices, 5)
    for code in range(5):
        assert counts[code] == (indices == code).sum()
        torch.testing.assert_close(sums[code], x[indices == code].sum(dim=0))


def test_smoothed_counts_are_positive_and_have_the_same_sum():
    counts = torch.tensor([0.0, 5.0, 1e-9, 2.0])
    assert (smoothed(counts) > 0).all()
    torch.testing.assert_close(smoothed(counts), counts, atol=1e-4, rtol=0)
    torch.testing.assert_close(smoothed(counts).sum(), counts.sum())


def test_smoothing_is_laplaces_rule():
    """(n + eps) / (N + K eps) N with eps = 1e-5: here 1, 3 and 2 parts of 6, of three."""
    counts = torch.tensor([0.0, 2e-5, 1e-5])
    torch.testing.assert_close(smoothed(counts), torch.tensor([0.5e-5, 1.5e-5, 1e-5]), rtol=1e-5, atol=0)


def test_a_pick_takes_none_twice_before_all_were_taken():
    x = torch.arange(7).float()[:, None]
    assert len(pick(x, 5).unique()) == 5
    taken = pick(x, 16).flatten().long().bincount(minlength=7)
    assert taken.sum() == 16 and taken.min() == 2 and taken.max() == 3


def test_k_means_from_every_vector_keeps_them_all():
    x = torch.randn(12, 3)
    found = k_means(x, 12, 5)
    torch.testing.assert_close(torch.tensor(sorted(found.tolist())), torch.tensor(sorted(x.tolist())))


def test_k_means_brings_the_vectors_nearer_with_every_step_and_ends_at_means():
    x = torch.randn(300, 2)

    def distance(steps):
        torch.manual_seed(0)
        return torch.cdist(x, k_means(x, 8, steps)).amin(dim=1).square().sum()

    errors = [distance(steps) for steps in range(8)]
    assert all(later <= earlier for earlier, later in pairwise(errors)) and errors[-1] < errors[0]
    torch.manual_seed(0)
    centres = k_means(x, 8, 200)
    owner = nearest(x, centres)
    for code in owner.unique():
        torch.testing.assert_close(centres[code], x[owner == code].mean(dim=0))


def test_k_means_finds_clusters_from_one_vector_of_each(monkeypatch):
    x = blobs(each=50)
    monkeypatch.setattr(clusters, "pick", lambda x, count: x[::50])
    means = x.view(4, 50, 2).mean(dim=1)
    torch.testing.assert_close(k_means(x, 4, 1), means)
    torch.testing.assert_close(k_means(x, 4, 10), means)
