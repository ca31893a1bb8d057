"""Vector quantisation: look-up, gradients, the codebook's two ways to move, its start, and codes out of use."""

import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torch.nn import functional as F

from ldm.autoencoders.bottlenecks import VQConfig, clusters

EPS = 1e-5


def built(channels=3, *, started=True, **options):
    """A quantiser of 6 codes that is past its start, unless asked otherwise, and replaces none."""
    bottleneck = VQConfig(**{"codes": 6, "revive": 0.0, **options}).build(channels)
    bottleneck.started.fill_(started)
    return bottleneck


def chosen(bottleneck, h):
    """Vectors (N, C), and the number of the code that each chooses (N,), by brute force."""
    x = h.movedim(1, -1).flatten(0, -2)
    return x, (x[:, None] - bottleneck.codebook).square().sum(dim=-1).argmin(dim=1)


def test_the_latent_is_the_nearest_code():
    bottleneck, h = built().eval(), torch.randn(2, 3, 4, 5)
    _, indices = chosen(bottleneck, h)
    assert torch.equal(bottleneck.codes(h).flatten(), indices)
    assert torch.equal(bottleneck(h, 60).z.movedim(1, -1).flatten(0, -2), bottleneck.codebook[indices])


@pytest.mark.parametrize("ema", [True, False])
def test_the_gradient_of_the_latent_is_passed_straight_through(ema):
    bottleneck, h, wanted = built(ema=ema), torch.randn(2, 3, 4, 5).requires_grad_(), torch.randn(2, 3, 4, 5)
    (bottleneck(h, 60).z * wanted).sum().backward()
    assert torch.equal(h.grad, wanted)
    assert ema or bottleneck.codebook.grad is None  # the reconstruction does not move the book


@pytest.mark.parametrize(("ema", "commitment"), [(True, 0.25), (False, 0.25), (False, 0.0)])
def test_the_penalty_is_the_codebooks_and_the_commitment_term(ema, commitment):
    bottleneck, h = built(ema=ema, commitment=commitment), torch.randn(2, 3, 4, 5).requires_grad_()
    book = bottleneck.codebook.detach().clone()
    x, indices = chosen(bottleneck, h.detach())
    penalty = bottleneck(h, 60).penalty
    error = (x - book[indices]).square().mean()
    torch.testing.assert_close(penalty, commitment * error + (0 if ema else error))
    penalty.backward()
    apart = 2 * (x - book[indices]) / x.numel()  # of the mean square, in h
    torch.testing.assert_close(h.grad.movedim(1, -1).flatten(0, -2), commitment * apart)
    if not ema:
        wanted = torch.zeros(6, 3).index_add_(0, indices, -apart)
        torch.testing.assert_close(bottleneck.codebook.grad, wanted)


def test_without_ema_the_forward_pass_leaves_the_book_and_the_gradient_moves_it_to_the_means():
    bottleneck, h = built(ema=False), torch.randn(2, 3, 4, 5)
    before = bottleneck.codebook.detach().clone()
    bottleneck(h, 60)
    assert torch.equal(bottleneck.codebook, before)
    opt = torch.optim.SGD(bottleneck.parameters(), lr=2.0)
    for _ in range(400):
        opt.zero_grad()
        bottleneck(h, 60).penalty.backward()
        opt.step()
    x, indices = chosen(bottleneck, h)
    for code in indices.unique():
        torch.testing.assert_close(bottleneck.codebook[code], x[indices == code].mean(dim=0), atol=1e-3, rtol=0)


def test_the_moving_codebook_is_the_closed_form_over_several_steps():
    """Counts and sums of vectors as exponentially weighted sums over the past, with the counts smoothed."""
    bottleneck, decay = built(decay=0.8), 0.8
    start = bottleneck.codebook.clone()
    seen = []
    for _ in range(5):
        h = torch.randn(2, 3, 4, 5)
        x, indices = chosen(bottleneck, h)
        seen.append((F.one_hot(indices, 6).float(), x))
        bottleneck(h, 60)
    even = 40 / 6
    weights = [(1 - decay) * decay ** (4 - step) for step in range(5)]
    counts = decay**5 * even + sum(w * one.sum(dim=0) for w, (one, _) in zip(weights, seen, strict=True))
    sums = decay**5 * even * start + sum(w * one.T @ x for w, (one, x) in zip(weights, seen, strict=True))
    total = counts.sum()
    assert total.item() == pytest.approx(40)
    laplace = (counts + EPS * even) / (total + 6 * EPS * even) * total
    torch.testing.assert_close(bottleneck.codebook, sums / laplace[:, None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bottleneck.uses, counts / even)


def test_the_codebook_divides_by_smoothed_counts(monkeypatch):
    """With so much smoothing that no tolerance hides it, in one step from the codes as they are."""
    monkeypatch.setattr(clusters, "EPS", 0.5)
    bottleneck, h, decay = built(decay=0.8), torch.randn(2, 3, 4, 5), 0.8
    before = bottleneck.codebook.clone()
    x, indices = chosen(bottleneck, h)
    bottleneck(h, 60)
    counts = torch.bincount(indices, minlength=6) * 6 / 40  # in units of an even use
    uses = decay + (1 - decay) * counts
    laplace = (uses + 0.5) / (6 + 6 * 0.5) * 6
    sums = decay * before + (1 - decay) * torch.zeros(6, 3).index_add_(0, indices, x) * 6 / 40
    wanted = torch.where(counts[:, None] > 0, sums / laplace[:, None], before)
    torch.testing.assert_close(bottleneck.codebook, wanted)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_code_that_no_vector_chooses_stays_where_it_is(cosine):
    bottleneck = built(2, codes=2, cosine=cosine, decay=0.9)
    bottleneck.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    for _ in range(300):
        bottleneck(torch.tensor([1.0, 0.1]).view(1, 2, 1, 1).expand(1, 2, 4, 4), 48)
    assert torch.equal(bottleneck.codebook[1], torch.tensor([0.0, -1.0]))
    assert bottleneck.uses[1] < 1e-12


@pytest.mark.parametrize("ema", [True, False])
def test_by_cosine_penalty_and_moving_codes_are_those_of_the_unit_vectors(ema):
    """As of a quantiser without it that is given unit vectors, and whose codes have length 1."""
    h, settings = torch.randn(2, 3, 4, 5), {"ema": ema, "decay": 0.8, "commitment": 0.25}
    cosine, plain = built(cosine=True, **settings), built(**settings)
    for bottleneck in (cosine, plain):
        bottleneck.codebook.data.copy_(F.normalize(torch.arange(18.0).view(6, 3).sin(), dim=1))
    found, wanted = cosine(h, 60), plain(F.normalize(h, dim=1), 60)
    torch.testing.assert_close(found.penalty, wanted.penalty)
    torch.testing.assert_close(cosine.codebook, plain.codebook)
    if not ema:
        with torch.no_grad():
            cosine.codebook.mul_(7.0)  # their length does not count
        torch.testing.assert_close(cosine(h, 60).penalty, wanted.penalty)


def test_the_nearest_code_is_found_far_from_zero_and_in_parts(monkeypatch):
    """At an offset of 1,000 distances made of squares in single precision name the wrong code for two vectors in three.

    Those of float64 are the measure, of vectors and codes as single precision holds them.
    """
    x, codes = torch.randn(500, 4) + 1_000, torch.randn(64, 4) + 1_000
    wanted = torch.cdist(x.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    whole = clusters.nearest(x, codes)
    assert (whole == wanted).float().mean() > 0.99
    monkeypatch.setattr(clusters, "AT_ONCE", 64 * 7)
    assert torch.equal(clusters.nearest(x.view(50, 10, 4), codes).flatten(), whole)


def test_a_moving_codebook_comes_to_rest_at_the_means_of_its_vectors():
    bottleneck, h = built(decay=0.5), torch.randn(2, 3, 4, 5)
    for _ in range(60):
        bottleneck(h, 60)
    x, indices = chosen(bottleneck, h)
    for code in indices.unique():
        torch.testing.assert_close(bottleneck.codebook[code], x[indices == code].mean(dim=0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("ema", [True, False])
def test_the_first_batch_starts_the_book_with_its_own_vectors_or_their_means(ema):
    h = torch.randn(1, 3, 2, 3)
    as_they_are = built(started=False, ema=ema)
    as_they_are(h, 18)  # as many codes as vectors
    assert as_they_are.started
    found = torch.tensor(sorted(as_they_are.codebook.tolist()))
    torch.testing.assert_close(found, torch.tensor(sorted(h.movedim(1, -1).flatten(0, -2).tolist())), atol=1e-4, rtol=0)
    two = built(1, started=False, codes=2, ema=ema)
    two(torch.tensor([0.0, 0.2, 8.0, 8.4]).view(1, 1, 1, 4), 12)
    torch.testing.assert_close(two.codebook.sort(dim=0).values, torch.tensor([[0.1], [8.2]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("ema", [True, False])
def test_dead_codes_come_back_as_vectors_of_the_batch(ema):
    bottleneck = built(revive=0.5, decay=0.5, ema=ema)
    with torch.no_grad():
        bottleneck.codebook[3:] = 100.0  # where nothing will ever be
    for step in range(3):
        h = torch.randn(2, 3, 4, 5)
        if step < 2:
            bottleneck(h, 60)  # uses 1, 0.5, 0.25 of an even use
    assert (bottleneck.uses[3:] == 0.25).all() and (bottleneck.codebook[3:] > 90).all()
    kept = bottleneck.codebook[bottleneck.uses >= 0.5].detach().clone()
    bottleneck._renew(h.movedim(1, -1).flatten(0, -2))
    vectors = {tuple(vector) for vector in h.movedim(1, -1).flatten(0, -2).tolist()}
    assert all(tuple(code) in vectors for code in bottleneck.codebook[3:].tolist())
    assert (bottleneck.uses[3:] == 1).all()
    assert all((bottleneck.codebook == code).all(dim=1).any() for code in kept)


def test_with_revival_more_of_the_book_is_used():
    def used(revive):
        torch.manual_seed(0)
        bottleneck = built(2, codes=64, decay=0.8, revive=revive)
        with torch.no_grad():
            bottleneck.codebook[1:] += 50.0
        for _ in range(40):
            code = bottleneck(torch.randn(4, 2, 8, 8), 60)
        return code.logs["usage"].item()

    assert used(0.0) < 0.1 and used(0.1) > 0.8


def test_by_cosine_latents_and_codes_are_unit_vectors_and_length_does_not_matter():
    bottleneck, h = built(cosine=True).eval(), torch.randn(2, 3, 4, 5)
    angles = F.cosine_similarity(h.movedim(1, -1)[..., None, :], bottleneck.codebook, dim=-1)  # (2, 4, 5, 6)
    assert torch.equal(bottleneck.codes(h), angles.argmax(dim=-1))
    assert torch.equal(bottleneck.codes(7 * h), bottleneck.codes(h))
    torch.testing.assert_close(bottleneck(h, 60).z.norm(dim=1), torch.ones(2, 4, 5))
    torch.testing.assert_close(bottleneck.mode(h).norm(dim=1), torch.ones(2, 4, 5))


@pytest.mark.parametrize("ema", [True, False])
def test_by_cosine_the_gradient_is_that_of_the_normalised_vector(ema):
    bottleneck, h, wanted = built(cosine=True, ema=ema), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    one, other = h.clone().requires_grad_(), h.clone().requires_grad_()
    (bottleneck(one, 60).z * wanted).sum().backward()
    (F.normalize(other, dim=1) * wanted).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_both_ways_to_move_have_the_same_weights():
    assert built(ema=True).state_dict().keys() == built(ema=False).state_dict().keys()


def test_codes_are_the_same_under_autocast():
    bottleneck, h = built(codes=200).eval(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = bottleneck(h, 60)
    assert torch.equal(code.z, bottleneck(h, 60).z) and code.z.dtype == torch.float32


def half_a_batch(rank, file, queue):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    bottleneck = built(revive=0.5, decay=0.5)
    batches = torch.randn(3, 4, 3, 4, 5)
    torch.manual_seed(rank)  # draws differ, as in training
    with torch.no_grad():
        bottleneck.codebook[0] = 100.0
    for batch in batches[:2]:
        bottleneck(batch.chunk(2)[rank], 60)
    together = bottleneck.codebook.clone()
    bottleneck(batches[2].chunk(2)[rank], 60)  # in which the first code comes back
    fresh = built(started=False)
    fresh(batches[0].chunk(2)[rank], 60)
    queue.put((rank, [part.tolist() for part in (together, bottleneck.codebook, fresh.codebook)]))
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_keep_one_book_which_is_that_of_the_whole_batch(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=half_a_batch, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert found[0] == found[1]
    torch.manual_seed(0)
    alone = built(decay=0.5)
    batches = torch.randn(3, 4, 3, 4, 5)
    alone.codebook[0] = 100.0
    for batch in batches[:2]:
        alone(batch, 60)
    torch.testing.assert_close(torch.tensor(found[0][0]), alone.codebook)
    assert torch.tensor(found[0][1]).abs().max() < 10  # the lost code is back


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codes", 1),
        ("commitment", -1.0),
        ("commitment", float("inf")),
        ("decay", 1.0),
        ("decay", float("nan")),
        ("revive", -0.1),
        ("revive", 1.0),
        ("kmeans", -1),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} {value}.*; try {name}="):
        VQConfig(**{name: value})
