"""A data set's check: what it finds in good and bad folders and archives, against what training makes of them."""

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zlib
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import write_tar
from PIL import Image
from safetensors import safe_open

from ldm.data.check import Inspection, TextSizes, images_per_second
from ldm.data.check_page import page
from ldm.data.findings import Findings, deal, ratio_class, side_class
from ldm.data.folder import FolderConfig
from ldm.data.latents import CacheConfig, write_cache
from ldm.data.loader import first_batches
from ldm.data.samples import SplitOptions
from ldm.data.shards import ShardsConfig
from ldm.data.stored import Stored, find_stored
from ldm.text.vocabulary import Vocabulary
from ldm.types import Condition

TEXT = TextSizes(Vocabulary.of(["picture 0 1 2 3 4 5 6 7 8 9"]), context_length=8, width=6, pooled_width=5)
KINDS = ("folder", "shards")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def picture(number: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def files_of(count: int) -> dict[str, bytes]:
    """``count`` pictures, each with its number as its caption."""
    return {
        name: data
        for n in range(count)
        for name, data in ((f"{n:03d}.png", encoded(picture(n))), (f"{n:03d}.txt", f"picture {n}".encode()))
    }


def store(root: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The same ``files`` as a folder or in one archive; returns what to check."""
    root.mkdir(exist_ok=True)
    if kind == "shards":
        write_tar(root / "0.tar", list(files.items()))
    else:
        for name, data in files.items():
            (root / name).write_bytes(data)
    return root


def check(path: Path | str, ranks: int = 1, workers: int = 1, **options: object) -> Findings:
    stored = find_stored(str(path))
    inspection = Inspection(SplitOptions(**{"size": 16, **options}), TEXT)
    for one in stored:
        inspection.look(one)
    return inspection.findings(str(path), stored, (4, 2, 2), ranks, workers)


def told(found: Findings) -> str:
    """The page; any findings must be fit for one, and for JSON."""
    json.dumps(asdict(found))
    return page(found, "tiny", 100.0, "cpu")


def bomb(side: int) -> bytes:
    """A PNG that claims to be ``side`` pixels wide and high."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_set_is_fit_and_counted(tmp_path: Path, kind: str) -> None:
    found = check(store(tmp_path / "set", kind, files_of(10)))
    assert found.reasons == [] and found.kind == kind
    assert (found.listed, found.usable, found.broken.count, found.captions.distinct) == (10, 10, 0, 10)
    assert told(found).endswith("\nfit to be trained on")


BROKEN = {
    "empty": (b"", "not one of PNG"),
    "html": (b"<html>404</html>", "not one of PNG"),
    "torn png": (encoded(picture(1, (64, 64)))[:500], "OSError"),
    "torn jpeg": (encoded(picture(1, (64, 64)), "JPEG")[:900], "OSError"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0", "not one of PNG"),
    "bomb": (bomb(60_000), "Bomb"),
    "smaller bomb": (bomb(10_000), "Bomb"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_picture_is_named_with_its_reason_and_the_others_are_counted(
    tmp_path: Path, fault: str, kind: str
) -> None:
    data, reason = BROKEN[fault]
    found = check(store(tmp_path / "set", kind, files_of(20) | {"007.png": data}))
    assert (found.listed, found.usable, found.broken.count) == (20, 19, 1)
    assert "007" in found.broken.first[0] and reason in found.broken.first[0]
    assert found.broken.first[0] in told(found) and not found.reasons


@pytest.mark.parametrize("kind", KINDS)
def test_more_broken_pictures_than_the_share_are_a_reason_and_as_many_are_not(tmp_path: Path, kind: str) -> None:
    path = store(tmp_path / "set", kind, files_of(40) | {f"{n:03d}.png": b"torn" for n in range(25)})
    assert not check(path, max_broken=25 / 40).reasons
    found = check(path, max_broken=24 / 40)
    assert found.reasons == ["25 of 40 pictures are broken, more than --max-broken 0.6"]
    assert len(found.broken.first) == 20 and "broken (25, the first 20):" in told(found)


ODD = {
    "CMYK": ("jpg", encoded(Image.new("CMYK", (16, 16)), "JPEG")),
    "I;16": ("png", encoded(Image.fromarray(np.full((16, 16), 999, np.uint16)))),
    "P transparent": ("png", encoded(Image.new("P", (16, 16)), transparency=0)),
    "RGBA transparent": ("png", encoded(Image.new("RGBA", (16, 16)))),
    "P animated": (
        "gif",
        encoded(picture(0).convert("P"), "GIF", save_all=True, append_images=[picture(1).convert("P")]),
    ),
    "L": ("png", encoded(Image.new("L", (16, 16)))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_odd_modes_are_named_and_usable(tmp_path: Path, kind: str) -> None:
    files = files_of(3)
    for number, (ending, data) in enumerate(ODD.values()):
        files |= {f"odd{number}.{ending}": data, f"odd{number}.txt": b"picture"}
    found = check(store(tmp_path / "set", kind, files))
    assert found.usable == 3 + len(ODD)
    assert {mode: named.count for mode, named in found.pictures.modes.items()} == {"RGB": 3, **dict.fromkeys(ODD, 1)}
    for number, mode in enumerate(ODD):
        assert f"odd{number}" in found.pictures.modes[mode].first[0]
        assert mode == "L" or f"{mode}: 1 ({found.pictures.modes[mode].first[0]})" in told(found)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_empty_mended_and_several_captions_are_told_apart(tmp_path: Path, kind: str) -> None:
    files = files_of(12)
    del files["001.txt"], files["002.png"]
    files |= {
        "003.txt": b"",
        "004.txt": b"caf\xe9",
        "005.txt": "\ufeffpicture".encode("utf-16-le"),
        "006.txt": b"1\n2\n",
    }
    found = check(store(tmp_path / "set", kind, files))
    notes = found.notes
    assert [named.count for named in (notes.missing, notes.empty, notes.alone, notes.mended)] == [1, 1, 1, 1]
    for named, number in zip((notes.missing, notes.empty, notes.alone, notes.mended), (1, 3, 2, 4), strict=True):
        assert f"{number:03d}" in named.first[0]
    assert (found.listed, found.captions.count, found.captions.several) == (9, 10, 1)
    assert not found.cache.exact and "at most" in told(found)


def test_captions_are_measured_in_the_encoders_tokens(tmp_path: Path) -> None:
    captions = ["picture " * n for n in (1, 2, 6, 7, 9)] + ["pictures of zebras"]
    files = {f"{n}.txt": text.encode() for n, text in enumerate(captions)}
    files |= {f"{n}.png": encoded(picture(n)) for n in range(len(captions))}
    found = check(store(tmp_path / "set", "folder", files)).captions
    assert [name.split(":")[0] for name in found.cut.first] == ["3.png", "4.png", "5.png"]
    assert (found.cut_by_clip, found.limit) == (2, 8)  # CLIP's whole vocabulary has words for zebras
    assert found.spelled.first == ["5.png"]
    assert found.longest == 2 + len(TEXT.vocabulary.encode(captions[-1]))


def layout(root: Path, name: str) -> FolderConfig | ShardsConfig:
    """One of the ways in which pictures and captions may lie, good and bad together, and how training reads it."""
    files = files_of(9) | {"004.png": b"torn", "notes.md": b"", "b.pkl": b""}
    bare = {file: data for file, data in files.items() if not file.endswith(".txt")}
    if name == "texts":
        store(root, "folder", files | {"005.txt": b"one\ntwo", "006.txt": b" \n"})
    elif name == "metadata":
        entries = [{"file_name": f"./{n:03d}.png", "text": f"of {n}"} for n in range(8)]
        store(root, "folder", bare | {"metadata.jsonl": "\n\n".join(map(json.dumps, entries)).encode()})
    elif name == "classes":
        store(root, "folder", bare)
        store(root / "red_fox", "folder", bare)
    else:
        store(root, "shards", files | {"005.json": b"{}", "007.txt": b"", "007.json": b'{"caption": "of 7"}'})
        write_tar(root / "1.tar", [*list(files_of(3).items())[:-1], ("x.txt", b" \n"), ("x.png", encoded(picture(1)))])
        return ShardsConfig(path=str(root), size=16, val_share=0)
    return FolderConfig(path=str(root), size=16, val_share=0)


@pytest.mark.parametrize("name", ["texts", "metadata", "classes", "shards"])
def test_it_lists_the_pictures_and_captions_that_training_reads(tmp_path: Path, name: str) -> None:
    config = layout(tmp_path / "set", name)
    dataset = config.build("train")
    listed = list(find_stored(config.path))
    assert len(listed) == len(dataset) > 5
    for row, stored in enumerate(listed):
        if stored.broken:
            with pytest.raises(ValueError):
                dataset.texts(row)
        else:
            assert stored.captions == dataset.texts(row)
            data = stored.picture if isinstance(stored.picture, bytes) else stored.picture.read_bytes()
            assert data == b"torn" or np.array_equal(Image.open(io.BytesIO(data)), dataset.picture(row))


@pytest.mark.parametrize("val_share", [0.0, 0.02, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_cache_are_those_that_caching_writes(tmp_path: Path, kind: str, val_share: float) -> None:
    files = files_of(30) | {f"{n:03d}.txt": b"picture 1 2 3 4 5 6 7 8 9" for n in range(4, 9)} | {"011.png": b"torn"}
    path = store(tmp_path / "set", kind, files)
    config = {"folder": FolderConfig, "shards": ShardsConfig}[kind](path=str(path), size=16, val_share=val_share)
    dataset = config.build("train")

    def text(captions: list[str]) -> Condition:
        rows, _ = TEXT.vocabulary.tokenize(captions, TEXT.context_length)
        mask = torch.arange(TEXT.context_length) <= rows.argmax(dim=1)[:, None]
        return Condition(torch.zeros(*mask.shape, TEXT.width), torch.zeros(len(captions), TEXT.pooled_width), mask)

    (tmp_path / "cache").mkdir()
    samples = first_batches(dataset, 8, len(dataset))
    write_cache(tmp_path / "cache", samples, lambda x: x[:, [0, 1, 2, 0], :2, :2], text, {}, CacheConfig(shard=7))
    written = 0
    for file in (tmp_path / "cache").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            written += sum(opened.get_tensor(key).nbytes for key in opened.keys())  # noqa: SIM118
    cache = check(path, val_share=val_share).cache
    assert (cache.bytes, cache.pictures, cache.exact) == (written, len(dataset), True)


def test_a_tar_cut_anywhere_is_named_and_gives_what_training_gets(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", list(files_of(3).items()))
    data = tar.read_bytes()
    for place in range(0, 7 * 1024, 97):
        tar.write_bytes(data[:place])
        found = check(tar)
        assert found.notes.cut.count == 1 and "0.tar" in found.notes.cut.first[0]
        assert "1 of 1 archives are cut off, more than --max-broken 0.1" in found.reasons
        assert found.usable == found.listed <= 3
        if found.listed:
            assert found.listed == len(ShardsConfig(path=str(tar), size=16, val_share=0).build("train"))
        told(found)


def test_a_pickle_is_named_and_never_opened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "ran"))
    for kind in KINDS:
        found = check(store(tmp_path / kind, kind, files_of(2) | {"000.pkl": trap, "alone.pth": trap}))
        assert found.notes.unread.count == 2 and "000.pkl" in found.notes.unread.first[0]
        assert found.usable == 2 and not found.reasons
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.txt"])
def test_a_member_that_leads_out_is_named_and_the_rest_is_still_read(tmp_path: Path, name: str) -> None:
    members = list(files_of(2).items())
    write_tar(tmp_path / "0.tar", [members[0], (name, b"x"), *members[1:]])
    found = check(tmp_path)
    assert found.notes.refused.first == [f"0.tar/{name}: leads out of the data set"]
    assert found.usable == 2 and "training refuses it" in found.reasons[0]


def test_links_and_metadata_that_lead_out_or_make_no_sense_are_all_named(tmp_path: Path) -> None:
    root = store(tmp_path / "set", "folder", files_of(2))
    (tmp_path / "outside.png").write_bytes(encoded(picture(1)))
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    lines = ['{"file_name": "../b.png", "text": "x"}', "{", '{"file_name": "000.png", "text": "x"}'] * 2
    (root / "metadata.jsonl").write_text("\n".join(lines))
    found = check(root)
    assert found.notes.refused.count == 5 and found.notes.repeated.count == 1 and found.usable == 2
    for part in ("link.png", "line 1: entry '../b.png' leads out", "line 2: not an entry", "line 5"):
        assert any(part in name for name in found.notes.refused.first)
    assert len(found.reasons) == 2


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_a_caption_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = store(tmp_path / "set", "folder", files_of(3))
    (path / "001.txt").chmod(0)
    assert "001.txt" in check(path).notes.refused.first[0]


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_an_archive_that_is_no_file_is_named(tmp_path: Path, what: str) -> None:
    write_tar(tmp_path / "0.tar", list(files_of(2).items()))
    (tmp_path / "1.tar").mkdir() if what == "folder" else os.mkfifo(tmp_path / "1.tar")
    found = check(tmp_path)
    assert found.usable == 2 and "1.tar: not a file" in found.notes.refused.first[0] and found.reasons


def test_pictures_that_come_again_are_named_by_bytes_and_by_pixels(tmp_path: Path) -> None:
    files = files_of(4)
    files |= {"002.png": files["000.png"], "003.png": encoded(picture(1), compress_level=0), "003.txt": b"picture 1"}
    assert files["003.png"] != files["001.png"]
    found = check(store(tmp_path / "set", "folder", files))
    assert found.same_bytes.first == ["002.png: as 000.png"]
    assert found.same_pixels.first == ["002.png: as 000.png", "003.png: as 001.png"]
    assert (found.captions.count, found.captions.distinct) == (4, 3)
    assert not found.reasons


@pytest.mark.parametrize("again", ["001.png", "001.txt", "001.jpg"])
def test_a_key_that_comes_twice_in_an_archive_is_a_reason(tmp_path: Path, again: str) -> None:
    write_tar(tmp_path / "0.tar", [*files_of(3).items(), (again, encoded(picture(9)))])
    found = check(tmp_path)
    assert again in found.notes.repeated.first[0] and "1 keys come twice" in found.reasons[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_without_any_caption_and_none_at_all_are_reasons(tmp_path: Path, kind: str) -> None:
    found = check(store(tmp_path / "bare", kind, {"a.png": encoded(picture(0))}))
    assert found.reasons[0].startswith("none of its 1 pictures has a caption") and told(found)
    found = check(store(tmp_path / "none", kind, {"a.md": b""}))
    assert found.reasons == ["there are no pictures in it"] and told(found)


def test_without_captions_all_pictures_of_a_folder_are_looked_at(tmp_path: Path) -> None:
    """As a first stage reads them; which of them have a caption is then no matter."""
    files = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1)), "b.txt": b"b", "c.png": b"none"}
    stored = find_stored(str(store(tmp_path / "bare", "folder", files)), captioned=False)
    inspection = Inspection(SplitOptions(size=16, max_broken=0.5), TEXT)
    for one in stored:
        inspection.look(one)
    found = inspection.findings("bare", stored, (4, 2, 2), 1, 1)
    assert (found.listed, found.usable, found.broken.count, found.reasons) == (3, 2, 1, [])
    config = FolderConfig(path=str(tmp_path / "bare"), size=16, val_share=0.4)
    assert found.listed == len(config.pictures("train")) + len(config.pictures("val"))
    shown = told(found)
    assert "3, captions not looked for: 2 usable" in shown and "tokens" not in shown and "left out" not in shown


def test_archives_are_not_checked_without_captions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in archives only pictures with a caption are read"):
        find_stored(str(store(tmp_path / "set", "shards", files_of(2))), captioned=False)


@pytest.mark.parametrize(("archives", "ranks", "workers"), [(2, 1, 1), (9, 2, 3), (9, 4, 2), (5, 4, 3), (1, 1, 1)])
def test_archives_are_dealt_out_as_the_stream_deals_them(archives: int, ranks: int, workers: int) -> None:
    trained = list(range(archives))[archives > 1 :]
    dealt = [
        len(list(islice(islice(trained, rank, None, ranks), worker, None, workers)))
        for rank in range(ranks)
        for worker in range(workers)
    ]
    found = deal([7] * archives, ranks, workers)
    assert (found.least_dealt, found.most_dealt, found.consumers) == (min(dealt), max(dealt), ranks * workers)


def test_fewer_archives_than_workers_of_all_ranks_are_a_reason(tmp_path: Path) -> None:
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", list(files_of(number + 1).items()))
    assert not check(tmp_path, ranks=2, workers=2).reasons
    found = check(f"{tmp_path}/{{0..4}}.tar", ranks=5)
    assert "4 training archives are too few for 5 ranks x 1 workers" in found.reasons[0]
    assert "5 of 1 to 5 samples" in told(found)


def test_sizes_are_those_of_the_upright_picture_and_small_ones_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    files = files_of(2) | {
        "000.png": encoded(picture(0, (300, 15))),
        "001.png": encoded(picture(1, (40, 20)), exif=exif),
    }
    pictures = check(store(tmp_path / "set", "folder", files)).pictures
    assert (pictures.smallest, pictures.largest) == ((20, 40), (300, 15))
    assert pictures.below_size.first == ["000.png: 300 x 15"]
    assert {ratio: n for ratio, n in pictures.ratios.items() if n} == {"1:2": 1, "2:1": 1}


def test_classes_of_sides_and_shapes_have_the_bounds_that_they_name() -> None:
    assert [side_class(side) for side in (1, 63, 64, 127, 128)] == [
        "below 64",
        "below 64",
        *["64 to 127"] * 2,
        "128 to 255",
    ]
    assert [side_class(side) for side in (2047, 2048, 10**5)] == ["1024 to 2047", *["2048 and more"] * 2]
    assert [ratio_class(*by) for by in ((1, 9), (3, 4), (100, 101), (4, 3), (9, 1))] == [
        "1:2",
        "3:4",
        "1:1",
        "4:3",
        "2:1",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_would_confuse_a_terminal_are_spelled_out(tmp_path: Path) -> None:
    data = {"a\x1b[2Jb\n.png": b"torn", "a\x1b[2Jb\n.txt": b"x", os.fsdecode(b"\xff.png"): b"torn"}
    text = told(check(store(tmp_path / "set", "folder", files_of(2) | data)))
    assert "a\\x1b[2Jb\\n.png: not one of" in text and "\\udcff.png" in text
    text.encode()


def test_nothing_is_written_beside_the_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", list(files_of(2).items()))
    check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_a_picture_that_was_looked_at_leaves_less_than_half_a_kilobyte_behind() -> None:
    """After a thousand, by when what is only ever kept of so many (caches of libraries above all) is there."""
    inspection = Inspection(SplitOptions(size=16), TEXT)
    tracemalloc.start()
    for number in range(1_200):
        if number == 1_000:
            before, _ = tracemalloc.get_traced_memory()
        data = encoded(picture(number, (16, 16)))
        inspection.look(Stored(f"{number:09d}.png", data, [f"picture {number}"]))
    del data
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 200 < 500


@pytest.mark.parametrize("path", ["nowhere", "nowhere/{0..3}.tar", "https://host/0.tar", "pipe:touch ran", ""])
def test_what_is_not_there_is_named_and_nothing_is_fetched_or_run(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not on this machine|there is no"):
        find_stored(path)
    assert not list(tmp_path.iterdir())


def test_the_rate_counts_every_picture_of_the_timed_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []

    def encode(images: torch.Tensor) -> torch.Tensor:
        clock[0] += 0.5 * len(images)
        seen.append(images.shape)
        return images[:, :, :1, :1]

    monkeypatch.setattr("ldm.data.check.time.perf_counter", lambda: clock[0])
    assert images_per_second(encode, 512) == 2
    assert set(seen) == {(2, 3, 512, 512)}
