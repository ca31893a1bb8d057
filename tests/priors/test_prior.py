"""The prior over a picture's codes, of one level and of two."""

from itertools import product

import pytest
import torch

from ldm.priors import CodePrior, PriorConfig, nats

CONFIG = PriorConfig(width=8, layers=3)


def two_levels(top=2, bottom=3):
    return CodePrior(CONFIG, (top, bottom)).eval()


def test_each_level_has_logits_of_its_own_codes():
    maps = [torch.randint(2, (4, 2, 3)), torch.randint(3, (4, 3, 5))]  # halves are rounded up
    assert [tuple(part.shape) for part in two_levels()(maps)] == [(4, 2, 2, 3), (4, 3, 3, 5)]


def test_the_bottom_depends_on_the_top_and_the_top_not_on_the_bottom():
    prior, top, bottom = two_levels(), torch.randint(2, (1, 2, 2)), torch.randint(3, (1, 4, 4))
    before = prior([top, bottom])
    for row, column in product(range(2), range(2)):
        other = top.clone()
        other[0, row, column] = 1 - other[0, row, column]
        moved = (prior([other, bottom])[1] - before[1]).abs().amax(dim=1)[0] > 0
        assert moved[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].all()
    assert torch.equal(prior([top, (bottom + 1) % 3])[0], before[0])


def test_the_likelihoods_of_all_pairs_of_maps_sum_to_one():
    prior = CodePrior(CONFIG, (2, 2)).double().eval()
    for level in prior.levels:
        torch.nn.init.normal_(level.head[-1].weight, std=2.0)
    pairs = torch.tensor(list(product((0, 1), repeat=5)))  # a top of 1 code, a bottom of 2 x 2
    maps = [pairs[:, :1].view(32, 1, 1), pairs[:, 1:].view(32, 2, 2)]
    total = sum(nats(logits, codes).sum(dim=(1, 2)) for logits, codes in zip(prior(maps), maps, strict=True))
    assert torch.exp(-total).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("counts", [(5,), (4, 5)])
def test_pictures_drawn_alone_are_those_of_a_batch_and_follow_the_seed(counts):
    prior = CodePrior(CONFIG, counts).eval()
    sizes = [(2, 2), (4, 3)][-len(counts) :]
    together, alone = prior.draw(sizes, [3, 4]), prior.draw(sizes, [4])
    for batch, one, size, count in zip(together, alone, sizes, counts, strict=True):
        assert batch.shape == (2, *size) and batch.max() < count
        assert torch.equal(batch[1:], one)
    assert not torch.equal(together[-1][0], together[-1][1])


def test_what_is_drawn_below_follows_what_was_drawn_above():
    prior, drawn = two_levels(), []
    torch.nn.init.normal_(prior.levels[1].head[-1].weight, std=5.0)
    torch.nn.init.normal_(prior.contexts[0].embed.weight, std=5.0)
    for code in range(2):
        prior.levels[0].head[-1].bias.data = 50.0 * torch.nn.functional.one_hot(torch.tensor(code), 2)
        top, bottom = prior.draw([(2, 2), (4, 4)], list(range(8)))
        assert (top == code).all()
        drawn.append(bottom)
    assert not torch.equal(*drawn)  # with the same numbers of the generators


def test_more_codes_than_a_table_holds_are_refused():
    with pytest.raises(ValueError, match=r"390,625 codes are more than the 65,536 .* levels=\[8,5,5,5\]"):
        PriorConfig().build((5**8,))


def test_at_least_one_picture_is_learned():
    with pytest.raises(ValueError, match="pictures 0"):
        PriorConfig(pictures=0)
