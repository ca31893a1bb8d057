import io
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import write_tar
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data.loader import batches, first_batches
from ldm.data.stream import Stream, StreamConfig
from ldm.data.transforms import to_tensor
from ldm.types import Sample


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def members_of(numbers: range) -> list[tuple[str, bytes]]:
    """An image and its number as the caption, for each of ``numbers``."""
    return [m for n in numbers for m in ((f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"{n}".encode()))]


def write_shards(root: Path, shards: int = 4, each: int = 5) -> str:
    for shard in range(shards):
        write_tar(root / f"{shard}.tar", members_of(range(shard * each, (shard + 1) * each)))
    return f"{root}/{{0..{shards - 1}}}.tar"


def build(urls: str, split: str = "train", **options: object) -> Stream:
    return StreamConfig(urls=urls, size=16, **options).build(split)


def numbers(samples: list[Sample]) -> list[int]:
    return [int(sample.caption) for sample in samples]


def take(stream: Stream, count: int) -> list[int]:
    return numbers(list(islice(stream, count)))


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))


def test_the_first_of_several_archives_is_held_out(tmp_path: Path) -> None:
    urls = write_shards(tmp_path)
    assert numbers(list(build(urls, "val"))) == [0, 1, 2, 3, 4]
    assert sorted(take(build(urls), 15)) == list(range(5, 20))


def test_val_urls_leave_all_others_to_training(tmp_path: Path) -> None:
    write_shards(tmp_path)
    config = {"urls": f"{tmp_path}/{{0,1}}.tar", "val_urls": f"{tmp_path}/3.tar"}
    assert sorted(take(build(**config), 10)) == list(range(10))
    assert numbers(list(build(split="val", **config))) == list(range(15, 20))


def test_one_archive_leaves_none_for_validation(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, shards=1)
    assert sorted(take(build(urls), 5)) == list(range(5))
    with pytest.raises(ValueError, match=r"no archive for 'val'; set data\.val_urls"):
        build(urls, "val")
    with pytest.raises(ValueError, match=r"no archive for 'train'; set data\.urls"):
        build("")


def test_held_out_archives_without_a_sample_are_told(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=1)
    write_tar(tmp_path / "empty.tar", [])
    stream = build(f"{tmp_path}/0.tar", "val", val_urls=f"{tmp_path}/empty.tar")
    with pytest.raises(ValueError, match=r"no sample is in the archives that are held out; set data\.val_urls"):
        list(first_batches(stream, 2, 4))


def test_validation_is_the_centre_of_each_picture_every_time(tmp_path: Path) -> None:
    urls = write_shards(tmp_path)
    stream = build(urls, "val", crop="random", flip=True)
    for _ in range(2):
        for number, sample in enumerate(stream):
            assert torch.equal(sample.image, to_tensor(picture(number).crop((4, 0, 20, 16))))


def test_training_goes_on_pass_after_pass_in_another_order_and_with_other_crops(tmp_path: Path) -> None:
    samples = list(islice(build(write_shards(tmp_path), crop="random"), 60))
    passes = [samples[i : i + 15] for i in range(0, 60, 15)]
    assert all(sorted(numbers(one)) == list(range(5, 20)) for one in passes)
    assert len({tuple(numbers(one)) for one in passes}) == 4
    of_seven = [sample.image for sample in samples if sample.caption == "7"]
    assert not all(torch.equal(image, of_seven[0]) for image in of_seven)


def test_the_stream_is_a_function_of_its_seed_and_epoch(tmp_path: Path) -> None:
    urls = write_shards(tmp_path)
    first, again = (list(islice(build(urls, crop="random"), 20)) for _ in range(2))
    assert all(torch.equal(a.image, b.image) and a.caption == b.caption for a, b in zip(first, again, strict=True))
    assert take(build(urls, seed=1), 15) != numbers(first)[:15]
    later = build(urls)
    later.epoch = 1
    assert take(later, 5) == numbers(first)[15:]


def test_without_a_buffer_archives_are_read_in_order(tmp_path: Path) -> None:
    got = take(build(write_shards(tmp_path), shuffle=1), 15)
    assert all(got[i : i + 5] == sorted(got[i : i + 5]) for i in (0, 5, 10))


@pytest.mark.parametrize(
    "url", ["pipe:touch {}", "PIPE:touch {}", " pipe:touch {}", "{{a.tar,pipe:touch {}}}", "p\tipe:touch {}"]
)
@pytest.mark.parametrize("key", ["urls", "val_urls"])
def test_a_pipe_is_refused_without_an_opt_in(tmp_path: Path, url: str, key: str) -> None:
    """Fault 6."""
    with pytest.raises(ValueError, match="runs a shell command; set allow_pipe=true"):
        StreamConfig(**{key: url.format(tmp_path / "ran")})
    assert not (tmp_path / "ran").exists()


def test_a_pipe_is_read_with_an_opt_in(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=1)
    assert sorted(take(build(f"pipe:cat {tmp_path}/0.tar", allow_pipe=True), 5)) == list(range(5))


def test_wrong_urls_are_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no archive '.*/7.tar'"):
        build(f"{tmp_path}/{{7,8}}.tar", "val")
    with pytest.raises(ValueError, match="cannot open s3: URLs"):
        StreamConfig(urls="s3://bucket/0.tar")
    with pytest.raises(ValueError, match=r"shuffle 0 .*try"):
        StreamConfig(shuffle=0)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "ran"))
    extra = [(f"0000.{ending}", trap) for ending in ("pkl", "pyd", "pickle", "pth", "pt")]
    tar = write_tar(tmp_path / "0.tar", [*extra, *members_of(range(2))])
    assert sorted(take(build(str(tar)), 2)) == [0, 1]
    assert not (tmp_path / "ran").exists()


def test_a_key_that_leads_out_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [("../a.png", png(0)), ("../a.txt", b"0")])
    with pytest.raises(ValueError, match=r"0\.tar: entry '\.\./a' leads out"):
        take(build(str(tar)), 1)


def test_broken_and_captionless_samples_are_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = dict(members_of(range(8)))
    members["0001.png"] = b"not a picture"
    members["0002.txt"] = b" \n"
    del members["0003.txt"], members["0004.png"]
    stream = build(str(write_tar(tmp_path / "0.tar", list(members.items()))), shuffle=1)
    assert take(stream, 4) == [0, 5, 6, 7]
    assert (stream.tally.broken, stream.captionless) == (2, 2)
    assert "broken samples are passed over" in caplog.text and "no picture or no caption" in caplog.text


def test_too_many_broken_samples_are_an_error(tmp_path: Path) -> None:
    members = dict(members_of(range(20))) | {f"{n:04d}.png": b"torn" for n in range(5)}
    tar = write_tar(tmp_path / "0.tar", list(members.items()))
    with pytest.raises(ValueError, match=r"11 of \d+ samples are broken, more than max_broken=0.1"):
        take(build(str(tar)), 1000)


@pytest.mark.parametrize("members", [[], [("a.png", png(0))], [("a.pkl", b"")], [("a.txt", b"0")]])
def test_a_pass_without_a_sample_is_an_error_and_not_an_endless_loop(
    tmp_path: Path, members: list[tuple[str, bytes]]
) -> None:
    tar = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match=r"samples in .*0.tar ... can be used"):
        take(build(str(tar)), 1)


def test_a_torn_archive_gives_its_whole_samples_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = write_shards(tmp_path, shards=12)
    torn = tmp_path / "3.tar"
    torn.write_bytes(torn.read_bytes()[: torn.read_bytes().index(png(17)) + 50])
    assert sorted(take(build(urls), 52)) == [*range(5, 17), *range(20, 60)]
    assert "3.tar cannot be used" in caplog.text


def test_a_torn_sample_never_gets_the_caption_of_the_next_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [*members_of(range(2)), ("0007.png", png(7))])
    write_tar(tmp_path / "1.tar", [("0007.txt", b"8"), *members_of(range(10, 12))])
    stream = build(f"{tmp_path}/{{0,1}}.tar", val_urls=f"{tmp_path}/0.tar")
    assert sorted(take(stream, 4)) == [0, 1, 10, 11]


def test_too_many_torn_archives_are_an_error(tmp_path: Path) -> None:
    urls = write_shards(tmp_path)
    for shard in (1, 2):
        (tmp_path / f"{shard}.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(
        ValueError, match=r"1 of \d archives are broken, more than max_broken=0.1; the last is .*[12].tar"
    ):
        take(build(urls), 100)


def test_ranks_share_no_archive_and_leave_none_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = write_shards(tmp_path, shards=5)
    got = []
    for rank in (0, 1):
        as_rank(monkeypatch, rank, ranks=2)
        got.append(set(take(build(urls), 10)))
        assert numbers(list(build(urls, "val"))) == [0, 1, 2, 3, 4]
    assert got[0].isdisjoint(got[1]) and got[0] | got[1] == set(range(5, 25))


def test_fewer_archives_than_ranks_and_workers_is_an_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 21."""
    urls = write_shards(tmp_path, shards=4)
    for rank in range(4):
        as_rank(monkeypatch, rank, ranks=4)
        with pytest.raises(
            ValueError, match="3 training archives are too few for 4 ranks x 1 workers; write at least 4"
        ):
            take(build(urls), 1)


def test_two_loader_workers_share_the_archives(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, shards=5)
    loader = DataLoader(build(urls), batch_size=None, num_workers=2)
    assert sorted(numbers(list(islice(loader, 20)))) == list(range(5, 25))
    assert numbers(list(DataLoader(build(urls, "val"), batch_size=None, num_workers=2))) == [0, 1, 2, 3, 4]


def test_more_workers_than_archives_is_an_error_with_the_numbers(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, shards=2)
    with pytest.raises(ValueError, match="1 training archives are too few for 1 ranks x 2 workers"):
        next(iter(DataLoader(build(urls), batch_size=None, num_workers=2)))


def test_a_pickled_stream_gives_the_same_samples(tmp_path: Path) -> None:
    stream = build(write_shards(tmp_path))
    assert take(pickle.loads(pickle.dumps(stream)), 15) == take(stream, 15)


def captions_of(urls: str, count: int, **options: int) -> list[list[str]]:
    return [batch.captions for batch in islice(batches(build(urls), 4, seed=0, **options), count)]


def test_a_training_that_goes_on_begins_with_another_shuffle(tmp_path: Path) -> None:
    urls = write_shards(tmp_path)
    stream = build(urls)
    stream.epoch = 3
    found = [caption for batch in captions_of(urls, 3, start=3) for caption in batch]
    assert found == [sample.caption for sample in islice(stream, 12)]
    assert captions_of(urls, 3, start=3) != captions_of(urls, 3, start=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_stream_are_full_and_never_end(tmp_path: Path, workers: int) -> None:
    """15 pictures are three batches a pass."""
    found = captions_of(write_shards(tmp_path), 9, workers=workers)
    assert [len(batch) for batch in found] == [4] * 9
    assert len({caption for batch in found for caption in batch}) == 15
