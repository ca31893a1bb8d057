"""The order of training batches: a pure function of (seed, step, rank)."""

from itertools import islice

import pytest
import torch

from ldm.data.loader import StepSampler, batches, first_batches
from ldm.data.shapes import ShapesConfig
from ldm.types import Key


def keys(count, length=23, batch=4, **options):
    return list(islice(StepSampler(length, batch, **{"seed": 0, **options}), count))


def shapes():
    return ShapesConfig(size=16, length=11).build("train")


def assert_same(ours, theirs):
    assert ours.captions == theirs.captions
    assert torch.equal(ours.image, theirs.image)


def test_the_order_depends_on_the_seed_alone():
    first = keys(20)
    torch.manual_seed(123), torch.rand(5)
    assert keys(20) == first
    assert keys(20, seed=1) != first


@pytest.mark.parametrize("start", [1, 5, 6, 40])
@pytest.mark.parametrize("rank", [0, 2])
def test_starting_at_a_batch_is_skipping_those_before_it(start, rank):
    whole = keys(start + 9, rank=rank, world=3)
    assert keys(9, rank=rank, world=3, start=start) == whole[start:]


@pytest.mark.parametrize("batch", [1, 4, 23, 50])
def test_every_epoch_visits_every_sample_once(batch):
    seen = [key for part in keys(23 * 3, batch=batch) for key in part]
    epochs = [seen[i : i + 23] for i in range(0, 23 * 3, 23)]
    for epoch, visited in enumerate(epochs):
        assert {key.epoch for key in visited} == {epoch}
        assert sorted(key.index for key in visited) == list(range(23))
    orders = [[key.index for key in visited] for visited in epochs]
    assert orders[0] != orders[1] != orders[2] != list(range(23))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_out_what_one_process_would_read(world):
    alone = [key for part in keys(12 * world) for key in part]
    ranks = [keys(12, rank=rank, world=world) for rank in range(world)]
    together = [key for step in zip(*ranks, strict=True) for part in step for key in part]
    assert together == alone
    assert len(set(together)) == len(together)


def test_a_batch_may_be_larger_than_the_data_set():
    (part,) = keys(1, length=3, batch=8)
    assert [key.epoch for key in part] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StepSampler(0, 4, seed=0)


def test_batches_hold_the_samples_of_their_keys():
    data = shapes()
    for part, batch in zip(keys(5, length=11), batches(data, 4, seed=0), strict=False):
        assert batch.captions == [data[key].caption for key in part]
        assert torch.equal(batch.image, torch.stack([data[key].image for key in part]))


def test_a_worker_process_changes_nothing():
    here, there = (islice(batches(shapes(), 4, seed=0, start=2, workers=workers), 4) for workers in (0, 1))
    for ours, theirs in zip(here, there, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(("count", "sizes"), [(4, [4]), (6, [4, 2]), (11, [4, 4, 3]), (99, [4, 4, 3]), (0, [])])
def test_the_first_samples_come_in_order_and_end(count, sizes):
    data = shapes()
    parts = list(first_batches(data, 4, count))
    assert [len(part.captions) for part in parts] == sizes
    assert [c for part in parts for c in part.captions] == [data[Key(0, i)].caption for i in range(sum(sizes))]
