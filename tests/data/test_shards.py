import io
import json
import logging
import pickle
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import write_tar
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data.shards import Shards, ShardsConfig, find_shards, opened, scan
from ldm.data.transforms import to_tensor
from ldm.types import Key


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def members_of(numbers: range) -> list[tuple[str, bytes]]:
    """An image and its number as the caption, for each of ``numbers``."""
    return [m for n in numbers for m in ((f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"picture {n}".encode()))]


def write_shards(root: Path, shards: int = 3, each: int = 5) -> Path:
    for shard in range(shards):
        write_tar(root / f"{shard:03d}.tar", members_of(range(shard * each, (shard + 1) * each)))
    return root


def build(path: Path | str, split: str = "train", **options: object) -> Shards:
    """The samples in the order of the archives, where a test can know which is which."""
    dataset = ShardsConfig(**{"path": str(path), "size": 16, "val_share": 0, **options}).build(split)
    dataset.chosen.sort()
    return dataset


def captions(dataset: Shards, epoch: int = 0) -> list[str]:
    return [dataset[Key(epoch, i)].caption for i in range(len(dataset))]


def test_every_sample_comes_with_its_own_caption_in_any_order(tmp_path: Path) -> None:
    dataset = build(write_shards(tmp_path))
    assert len(dataset) == 15
    for index in (14, 0, 7, 7, 3):
        image, caption = dataset[Key(0, index)]
        assert caption == f"picture {index}"
        assert torch.equal(image, to_tensor(picture(index)))


def test_a_folder_braces_and_wildcards_name_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    (tmp_path / "sub").mkdir()
    write_shards(tmp_path / "sub", shards=2)
    every = [tmp_path / f"{shard:03d}.tar" for shard in range(3)]
    assert (
        find_shards(str(tmp_path))
        == find_shards(f"{tmp_path}/*.tar")
        == find_shards(f"{tmp_path}/{{000..002}}.tar")
        == every
    )
    assert find_shards(f"{tmp_path}/*/00[12].tar") == [tmp_path / "sub/001.tar"]
    monkeypatch.chdir(tmp_path)
    assert find_shards("{000,002}.tar") == [Path("000.tar"), Path("002.tar")]
    with pytest.raises(ValueError, match=r"no archive '003.tar'"):
        find_shards("{000..003}.tar")
    with pytest.raises(ValueError, match=r"data.path"):
        ShardsConfig().build("train")


def test_the_index_is_kept_and_made_anew_when_the_archive_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, shards=1)
    build(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.idx.json", "000.tar"]
    with monkeypatch.context() as patch:
        patch.setattr("ldm.data.shards.scan", lambda shard: pytest.fail("the archive was read again"))
        assert len(build(tmp_path)) == 5
    write_tar(tmp_path / "000.tar", members_of(range(7)))
    assert captions(build(tmp_path))[6] == "picture 6"


@pytest.mark.parametrize("torn", ["", "{", "[]", "{}", '{"rows": [[1]]}', '{"rows": [], "other": 1}'])
def test_a_torn_index_is_made_anew(tmp_path: Path, torn: str) -> None:
    write_shards(tmp_path, shards=1)
    (tmp_path / "000.idx.json").write_text(torn)
    assert len(build(tmp_path)) == 5
    assert len(json.loads((tmp_path / "000.idx.json").read_text())["rows"]) == 5


def test_an_index_that_cannot_be_kept_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path, shards=1)
    (tmp_path / "000.idx.json").mkdir()
    assert len(build(tmp_path)) == 5
    assert "cannot be kept" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.idx.json", "000.tar"]


def cut_points(tar: Path) -> dict[str, int]:
    """Byte offsets in the fourth of the samples at which to cut the archive."""
    with tarfile.open(tar) as opened_tar:
        image, text = opened_tar.getmember("0003.png"), opened_tar.getmember("0003.txt")
    return {
        "before a sample": image.offset,
        "in the header of an image": image.offset + 100,
        "in the data of an image": image.offset_data + 200,
        "between image and caption": text.offset,
        "in the header of a caption": text.offset + 300,
        "in the data of a caption": text.offset_data + 4,
    }


CUTS = ["before a sample", "in the header of an image", "in the data of an image"]
CUTS += ["between image and caption", "in the header of a caption", "in the data of a caption"]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_archive_gives_its_whole_samples_and_reports_the_lost(
    tmp_path: Path, cut: str, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 26."""
    write_shards(tmp_path, shards=1, each=10)
    tar = tmp_path / "000.tar"
    tar.write_bytes(tar.read_bytes()[: cut_points(tar)[cut]])
    if known:
        (tmp_path / "000_stats.json").write_text('{"count": 12, "successes": 10}')
    begun = 0 if cut in CUTS[:2] else 1
    for _ in ("scanned", "from the index"):
        caplog.clear()
        assert captions(build(tmp_path)) == ["picture 0", "picture 1", "picture 2"]
        assert f"000.tar is cut off: 3 samples are whole, at least {7 if known else begun} lost" in caplog.text
        assert "no caption" not in caplog.text


def test_a_cut_last_caption_is_made_up_by_the_json(tmp_path: Path) -> None:
    members = [("0.jpg", png(0)), ("0.json", b'{"caption": "from json"}'), ("0.txt", b"from text")]
    tar = write_tar(tmp_path / "0.tar", members)
    assert captions(build(tar)) == ["from text"]
    tar.write_bytes(tar.read_bytes()[: tar.read_bytes().index(b"from text") + 3])
    assert captions(build(tar)) == ["from json"]


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b" + bytes(2000)])
def test_a_file_that_is_no_archive_is_reported_and_the_others_are_read(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, shards=2)
    (tmp_path / "000.tar").write_bytes(data)
    assert captions(build(tmp_path)) == [f"picture {n}" for n in range(5, 10)]
    assert "000.tar is cut off: 0 samples are whole" in caplog.text


@pytest.mark.parametrize("size", [b"\x7f" + b"\xff" * 11, b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"not a size\0"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_header_that_makes_no_sense_ends_the_archive_there(
    tmp_path: Path, size: bytes, kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, shards=1)
    tar = tmp_path / "000.tar"
    data, place = bytearray(tar.read_bytes()), cut_points(tar)["before a sample"]
    header = data[place : place + 512]
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[place : place + 512] = header
    tar.write_bytes(data)
    assert captions(build(tmp_path)) == ["picture 0", "picture 1", "picture 2"]
    assert "000.tar is cut off: 3 samples are whole" in caplog.text


def test_a_json_nested_too_deep_is_a_broken_sample(tmp_path: Path) -> None:
    members = dict(members_of(range(12))) | {"0003.json": b"[" * 200_000}
    del members["0003.txt"]
    write_tar(tmp_path / "0.tar", list(members.items()))
    dataset = build(tmp_path)
    assert captions(dataset)[3] == "picture 4"
    assert dataset.tally.broken == 1


def test_a_whole_archive_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(write_shards(tmp_path))
    assert not caplog.records


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.txt"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    """Fault 28."""
    write_tar(tmp_path / "0.tar", [*members_of(range(2)), (name, b"x")])
    with pytest.raises(ValueError, match=f"0.tar: entry '{name}' leads out"):
        build(tmp_path)


def test_pickles_and_weights_are_never_read(tmp_path: Path) -> None:
    """Fault 6."""
    extra = [(f"0000.{ending}", b"trap") for ending in ("pkl", "pth", "pt", "pyd", "pickle")]
    tar = write_tar(tmp_path / "0.tar", [*extra, *members_of(range(2)), ("alone.pkl", b"trap")])
    assert captions(build(tmp_path)) == ["picture 0", "picture 1"]
    data = tar.read_bytes()
    for row in scan(tar).rows:
        assert data[row.image : row.image + 4] == b"\x89PNG" and data[row.caption : row.caption + 7] == b"picture"


def test_pictures_without_a_caption_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("b.png", png(1)), ("b.txt", b""), *members_of(range(2))])
    assert len(build(tmp_path)) == 2
    assert "2 pictures have no caption" in caplog.text


def test_archives_without_a_sample_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", png(0))])
    with pytest.raises(ValueError, match="with 0 samples"):
        build(tmp_path)


def test_a_broken_picture_or_caption_is_replaced_by_the_next_good_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = dict(members_of(range(40)))
    members["0003.png"] = b"not a picture"
    members["0007.txt"] = b" \n"
    write_tar(tmp_path / "0.tar", list(members.items()))
    dataset = build(tmp_path)
    got = captions(dataset)
    assert (got[3], got[7]) == ("picture 4", "picture 8")
    assert dataset.tally.broken == 2
    assert "0.tar cannot be used" in caplog.text


def test_too_many_broken_pictures_are_an_error(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", [(name, b"" if name.endswith("png") else data) for name, data in members_of(range(9))]
    )
    with pytest.raises(ValueError, match=r"more than max_broken=0.1"):
        captions(build(tmp_path))


def test_several_captions_are_picked_by_epoch(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.txt", b"\xef\xbb\xbfone\ntwo\n")])
    by_epoch = [captions(build(tmp_path), epoch)[0] for epoch in range(12)]
    assert set(by_epoch) == {"one", "two"}
    assert by_epoch == [captions(build(tmp_path), epoch)[0] for epoch in range(12)]


@pytest.mark.parametrize(
    ("ending", "captions", "fixed"),
    [("txt", b"one\n\n", True), ("txt", b"one\ntwo\n", False), ("json", b'{"caption": ["one", "two"]}', False)],
)
def test_samples_with_several_captions_differ_between_epochs(
    tmp_path: Path, ending: str, captions: bytes, fixed: bool
) -> None:
    """And so are not cached, which would keep one of them."""
    members = [*members_of(range(3)), ("a.png", png(5)), (f"a.{ending}", captions)]
    write_tar(tmp_path / "0.tar", [*members, ("broken.png", png(6)), ("broken.json", b"{")])
    for _ in ("scanned", "from the index"):
        assert build(tmp_path).fixed is fixed
    assert not build(tmp_path, crop="random").fixed


def test_an_index_of_an_older_format_is_made_anew(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.txt", b"one\ntwo")])
    build(tmp_path)
    file = tmp_path / "0.idx.json"
    index = json.loads(file.read_text())
    del index["several"]
    file.write_text(json.dumps({**index, "format": 1}))
    assert not build(tmp_path).fixed


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    write_shards(tmp_path)
    train, val = (captions(build(tmp_path, split, val_share=0.3)) for split in ("train", "val"))
    assert val and sorted(train + val) == sorted(f"picture {n}" for n in range(15))


def test_the_fingerprint_changes_with_the_archives_and_the_settings(tmp_path: Path) -> None:
    write_shards(tmp_path)
    prints = [build(tmp_path).fingerprint(), build(tmp_path, crop="random").fingerprint()]
    assert prints[0] == build(tmp_path).fingerprint()
    write_tar(tmp_path / "000.tar", members_of(range(6)))
    assert build(tmp_path).fingerprint() not in prints and prints[0] != prints[1]


def test_two_loader_workers_read_the_same_samples(tmp_path: Path) -> None:
    dataset = build(write_shards(tmp_path, shards=4, each=10), crop="random", flip=True)
    captions(dataset)  # handles are open in this process before it forks
    keys = [Key(1, int(i)) for i in np.random.default_rng(0).permutation(40)]
    loader = DataLoader(dataset, batch_size=None, sampler=keys, num_workers=2)
    for sample, key in zip(loader, keys, strict=True):
        assert sample.caption == f"picture {key.index}"
        assert torch.equal(sample.image, dataset[key].image)


def test_a_handle_is_not_shared_between_processes(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [])
    assert opened(tar, 1) is opened(tar, 1)
    assert opened(tar, 1) is not opened(tar, 2)


def test_a_pickled_data_set_gives_the_same_samples(tmp_path: Path) -> None:
    dataset = build(write_shards(tmp_path))
    captions(dataset)
    assert captions(pickle.loads(pickle.dumps(dataset))) == captions(dataset)


def test_make_shapes_writes_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/make_shapes.py"))
    arguments = ["--format", "shards", "--count", "7", "--size", "16", "--shard-size", "3"]
    script["main"]([*arguments, "--out", str(tmp_path / "made")])
    with caplog.at_level(logging.WARNING):
        assert len(set(captions(build(tmp_path / "made")))) > 3
    assert not caplog.records
    tar = tmp_path / "made/00001.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    build(tmp_path / "made")
    assert "00001.tar is cut off: 0 samples are whole, at least 3 lost" in caplog.text
