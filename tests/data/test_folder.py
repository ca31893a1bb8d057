import json
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.config import ConfigError, choose
from ldm.data import pictures_of
from ldm.data.folder import FolderConfig
from ldm.data.samples import in_split
from ldm.data.transforms import to_tensor
from ldm.types import Key, Sample


def paint(path: Path, number: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def fill(root: Path, count: int) -> Path:
    """``count`` pictures, each with its number as its caption."""
    for number in range(count):
        paint(root / f"{number:03d}.png", number).with_suffix(".txt").write_text(f"picture {number}")
    return root


def config(root: Path, **options: object) -> FolderConfig:
    return FolderConfig(path=str(root), size=16, **options)


def samples(root: Path, split: str = "train", epoch: int = 0, **options: object) -> list[Sample]:
    dataset = config(root, **options).build(split)
    return [dataset[Key(epoch, i)] for i in range(len(dataset))]


def captions(root: Path, split: str = "train", **options: object) -> list[str]:
    return [sample.caption for sample in samples(root, split, **options)]


def test_a_picture_comes_with_the_text_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    for sample in samples(tmp_path, val_share=0):
        number = int(sample.caption.split()[1])
        with Image.open(tmp_path / f"{number:03d}.png") as image:
            assert torch.equal(sample.image, to_tensor(image))


def test_sub_folders_and_all_image_endings_are_found(tmp_path: Path) -> None:
    for number, ending in enumerate(("png", "JPG", "jpeg", "webp", "bmp", "gif", "tif")):
        paint(tmp_path / f"a/b{number}" / f"x.{ending}").with_suffix(".txt").write_text(ending)
    assert set(captions(tmp_path, val_share=0)) == {"png", "JPG", "jpeg", "webp", "bmp", "gif", "tif"}


def test_one_of_several_captions_is_picked_by_seed_epoch_and_index(tmp_path: Path) -> None:
    paint(tmp_path / "a.png").with_suffix(".txt").write_text("one\ntwo\nthree\n")
    by_epoch = [samples(tmp_path, epoch=epoch, val_share=0)[0].caption for epoch in range(20)]
    assert set(by_epoch) == {"one", "two", "three"}
    assert by_epoch == [samples(tmp_path, epoch=epoch, val_share=0)[0].caption for epoch in range(20)]
    assert by_epoch != [samples(tmp_path, epoch=epoch, val_share=0, seed=1)[0].caption for epoch in range(20)]


def test_captions_are_read_from_metadata(tmp_path: Path) -> None:
    paint(tmp_path / "sub/a.png"), paint(tmp_path / "b.png")
    lines = [{"file_name": "sub/a.png", "text": "a star"}, {"file_name": "./b.png", "text": "a ring"}]
    text = "\ufeff" + "\n\n".join(map(json.dumps, lines))
    (tmp_path / "metadata.jsonl").write_text(text, "utf-8")
    assert sorted(captions(tmp_path, val_share=0)) == ["a ring", "a star"]


def test_class_folders_give_captions_when_there_are_no_others(tmp_path: Path) -> None:
    paint(tmp_path / "red_fox/1.png"), paint(tmp_path / "red_fox/deep/2.png"), paint(tmp_path / "owl/3.png")
    paint(tmp_path / "stray.png")
    assert sorted(captions(tmp_path, val_share=0)) == ["owl", "red fox", "red fox"]
    (tmp_path / "owl/3.txt").write_text("a grey owl")
    assert captions(tmp_path, val_share=0) == ["a grey owl"]


def test_pictures_without_a_caption_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault 27."""
    fill(tmp_path, 3)
    paint(tmp_path / "bare.png")
    paint(tmp_path / "blank.png").with_suffix(".txt").write_text("\ufeff  \n")
    assert len(captions(tmp_path, val_share=0)) == 3
    assert "2 of 5 pictures have no caption" in caplog.text


def test_nothing_captioned_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match="none of the 1 pictures has a caption"):
        config(tmp_path).build("train")


def test_who_reads_no_captions_has_every_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many as have a caption stay in the split that they are in."""
    fill(tmp_path, 20)
    paint(tmp_path / "bare.png", 20)
    for split in ("train", "val"):
        captioned, every = config(tmp_path).build(split), pictures_of(config(tmp_path), split)
        assert {captioned.names[row] for row in captioned.chosen} <= {every.names[row] for row in every.chosen}
    assert caplog.text.count("no caption") == 2  # said by those that leave it out
    every = pictures_of(config(tmp_path, val_share=0), "train")
    assert len(every) == 21 and {every[Key(0, i)].caption for i in range(21)} == {""}
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no pictures here"):
        pictures_of(config(tmp_path / "none"), "train")


def test_the_first_samples_are_a_fair_draw_of_all(tmp_path: Path) -> None:
    """Of 40 in two folders the first 20 by their names are one folder's: 20 drawn are so once in 10^11 times."""
    for number in range(40):
        paint(tmp_path / ("a" if number < 20 else "b") / f"{number}.png", number)
    first = captions(tmp_path, val_share=0)[:20]
    assert 4 < first.count("a") < 16


def test_no_folder_and_no_pictures_are_errors_that_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder '.*missing'"):
        config(tmp_path / "missing").build("train")
    with pytest.raises(ValueError, match=r"data.path"):
        FolderConfig().build("train")
    with pytest.raises(ValueError, match=f"{tmp_path}: no pictures"):
        config(tmp_path).build("train")


def test_a_caption_of_metadata_may_hold_any_character_that_json_may(tmp_path: Path) -> None:
    """Separators of lines stand in captions taken from pages of the web; here too they part one from the next."""
    paint(tmp_path / "a.png")
    line = json.dumps({"file_name": "a.png", "text": "one\u2028two\u2029three\u0085four"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(line + "\r\n", "utf-8")
    (found,) = captions(tmp_path, val_share=0)
    assert found in ("one", "two", "three", "four")


@pytest.mark.parametrize("name", ["../b.png", "/etc/b.png", "sub/../../b.png"])
def test_metadata_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Fault 28."""
    fill(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 1: entry '{name}' leads out"):
        config(tmp_path).build("train")


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', "7", pytest.param("[" * 200_000, id="deep")])
def test_a_bad_line_of_metadata_is_named(tmp_path: Path, line: str) -> None:
    fill(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "000.png", "text": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2"):
        config(tmp_path).build("train")


@pytest.mark.parametrize("target", ["outside.png", "outside"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, target: str) -> None:
    """Fault 28."""
    root = fill(tmp_path / "root", 2)
    paint(tmp_path / "outside.png"), (tmp_path / "outside").mkdir()
    (root / "link.png").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"link 'link\.png' leads out"):
        config(root).build("train")


def test_links_inside_the_folder_and_hidden_files_do_no_harm(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "again.png").symlink_to(tmp_path / "000.png")
    (tmp_path / "again.txt").write_text("linked")
    (tmp_path / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert sorted(captions(tmp_path, val_share=0)) == ["linked", "picture 0", "picture 1"]


def test_a_broken_picture_is_replaced_by_the_next_good_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault 23."""
    fill(tmp_path, 20)
    whole = captions(tmp_path, val_share=0)
    third, last = (tmp_path / f"{int(whole[place].split()[1]):03d}.png" for place in (3, 19))
    third.write_bytes(b"not a picture")
    last.write_bytes(last.read_bytes()[:100])
    got = captions(tmp_path, val_share=0)
    assert got == [*whole[:3], whole[4], *whole[4:19], whole[0]]
    assert got == captions(tmp_path, val_share=0)
    assert third.name in caplog.text


def test_too_many_broken_pictures_are_an_error(tmp_path: Path) -> None:
    """Fault 23."""
    fill(tmp_path, 20)
    broken = [f"{int(caption.split()[1]):03d}.png" for caption in captions(tmp_path, val_share=0)[:3]]
    for name in broken:
        (tmp_path / name).write_bytes(b"")
    told = rf"3 of 3 samples are broken, more than max_broken=0.1; the last is .*{broken[2]}"
    with pytest.raises(ValueError, match=told):
        samples(tmp_path, val_share=0)
    assert len(samples(tmp_path, val_share=0, max_broken=0.2)) == 20


def test_a_folder_of_broken_pictures_ends_with_an_error(tmp_path: Path) -> None:
    """Fault 23."""
    fill(tmp_path, 3)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 3 samples are broken"):
        samples(tmp_path, val_share=0, max_broken=0.99)


def test_splits_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(2_000)]
    train, val = in_split(names, "train", 0.1), in_split(names, "val", 0.1)
    assert sorted(train + val) == list(range(2_000))
    assert 150 < len(val) < 250
    more = [*names, *(f"new{number}.png" for number in range(500))]
    assert val == [i for i in in_split(more, "val", 0.1) if i < 2_000]
    fill(tmp_path, 30)
    assert not set(captions(tmp_path, "train")) & set(captions(tmp_path, "val"))


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_two_samples_give_one_to_each_split(share: float) -> None:
    assert len(in_split(["a", "b"], "train", share)) == len(in_split(["a", "b"], "val", share)) == 1


def test_a_split_without_samples_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    assert len(config(tmp_path, val_share=0.99).build("train")) == 1
    with pytest.raises(ValueError, match="none is left for 'val'"):
        config(tmp_path).build("val")
    with pytest.raises(ValueError, match="split 'test'"):
        config(tmp_path).build("test")


def test_crops_change_with_the_epoch_in_training_and_never_in_validation(tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / f"{number}.png", number, size=(200, 16)).with_suffix(".txt").write_text("wide")
    first, again, later = (samples(tmp_path, epoch=epoch, crop="random")[0].image for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    val = [samples(tmp_path, "val", epoch=epoch, crop="random")[0].image for epoch in (0, 1)]
    assert torch.equal(*val)


def test_the_fingerprint_changes_with_what_the_samples_depend_on(tmp_path: Path) -> None:
    fill(tmp_path, 6)

    def made(split: str = "train", **options: object) -> str:
        return config(tmp_path, **options).build(split).fingerprint()

    assert made() == made() == made(max_broken=0.5)
    variants = [made(), made("val"), made(crop="random"), made(flip=True), made(seed=1), made(val_share=0.5)]
    (tmp_path / "000.txt").write_text("another caption")
    (tmp_path / "001.txt").write_text("another caption")
    variants.append(made())
    paint(tmp_path / "000.png", 99), paint(tmp_path / "001.png", 98)
    variants.append(made())
    assert len(set(variants)) == len(variants)


def test_a_pickled_data_set_gives_the_same_samples(tmp_path: Path) -> None:
    dataset = config(fill(tmp_path, 5)).build("train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[Key(3, 1)].image, dataset[Key(3, 1)].image)
    with pytest.raises(IndexError, match="index 99"):
        dataset[Key(0, 99)]


def test_loader_workers_give_the_same_samples(tmp_path: Path) -> None:
    dataset = config(fill(tmp_path, 8), crop="random", flip=True, val_share=0).build("train")
    keys = [Key(1, i) for i in range(8)]
    loader = DataLoader(dataset, batch_size=None, sampler=keys, num_workers=2)
    assert all(torch.equal(sample.image, dataset[key].image) for sample, key in zip(loader, keys, strict=True))


def test_the_configuration_is_read_from_a_table() -> None:
    made = choose({"folder": FolderConfig}, {"name": "folder", "path": "x", "crop": "random"}, "data", FolderConfig())
    assert made == FolderConfig(path="x", crop="random")
    with pytest.raises(ConfigError, match="val_share 2"):
        choose({"folder": FolderConfig}, {"name": "folder", "val_share": 2.0}, "data", FolderConfig())


def test_make_shapes_writes_a_folder_and_refuses_to_write_into_it_again(
    tmp_path: Path,
) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/make_shapes.py"))
    arguments = ["--out", str(tmp_path / "made"), "--count", "5", "--size", "16"]
    script["main"](arguments)
    assert len(samples(tmp_path / "made", val_share=0)) == 5
    with pytest.raises(ValueError, match="is not empty"):
        script["main"](arguments)


def test_pictures_that_are_not_all_written_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/make_shapes.py"))

    def broken(self: Path, *args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", broken)  # of the first caption, when its picture is there
    with pytest.raises(KeyboardInterrupt):
        script["main"](["--out", str(tmp_path / "made"), "--count", "5", "--size", "16"])
    assert list((tmp_path / "made").iterdir()) == []
