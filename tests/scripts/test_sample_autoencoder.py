"""sample_autoencoder.py and train_prior.py as a user calls them."""

from pathlib import Path

import numpy as np
import pytest
from calls import SCRIPTS, assert_one_line, call
from conftest import TINY
from PIL import Image

from ldm.autoencoders import Autoencoder
from ldm.priors import CodePrior

ROW, SIDE = 66, 64  # pixels of a row of a grid, and of a picture


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A run with a first stage of codes and its prior, trained by the scripts on tiny settings."""
    folder = tmp_path_factory.mktemp("vq")
    settings = (*TINY, "bottleneck=vq2", "bottleneck.codes=8", "autoencoder.channels=4", f"out={folder}")
    for script, name in (("train_autoencoder.py", "autoencoder"), ("train_prior.py", "prior")):
        status, printed, errors = call(script, *settings)
        assert status == 0, errors
        assert printed.splitlines()[-1] == f"written to {folder / name}"
    return folder


def shown(tmp_path, *args):
    """The grid that the script wrote, and what it printed."""
    status, printed, errors = call("sample_autoencoder.py", *args, "--out", tmp_path)
    assert status == 0, errors
    path = Path(printed.splitlines()[-1].partition(": ")[2])
    with Image.open(path) as image:
        return np.asarray(image).astype(int), printed


def panel(sheet, row, column):
    top, left = 2 + ROW * row, 2 + ROW * column
    return sheet[top : top + SIDE, left : left + SIDE]


def test_reconstructions_stand_below_their_pictures(tmp_path):
    sheet, _ = shown(tmp_path, "--count", 10)  # of the shipped model
    assert sheet.shape == (4 * ROW + 2, 8 * ROW + 2, 3)
    for row, column in [*((0, i) for i in range(8)), (2, 0), (2, 1)]:
        assert abs(panel(sheet, row, column) - panel(sheet, row + 1, column)).mean() < 4
    assert abs(panel(sheet, 0, 0) - panel(sheet, 1, 1)).mean() > 10
    assert (panel(sheet, 2, 2) == 255).all() and (panel(sheet, 3, 2) == 255).all()  # nothing is left to show


def test_grids_are_numbered_on_and_samples_follow_their_seeds(tmp_path):
    first, _ = shown(tmp_path, "--what", "samples", "--count", 3, "--seed", 4)
    again, printed = shown(tmp_path, "--what", "samples", "--count", 2, "--seed", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png"]
    assert abs(panel(first, 0, 1) - panel(again, 0, 0)).max() <= 1
    assert abs(panel(first, 0, 2) - panel(again, 0, 1)).max() <= 1 < abs(panel(again, 0, 0) - panel(again, 0, 1)).max()
    assert "samples: " in printed


@pytest.mark.parametrize("which", ["", "autoencoder"])
def test_a_first_stage_of_codes_draws_from_its_prior(coded, tmp_path, which):
    sheet, _ = shown(tmp_path, coded / which, "--what", "samples", "--count", 2, "--seed", 3)
    later, _ = shown(tmp_path, coded / which, "--what", "samples", "--count", 2, "--seed", 4)
    assert abs(panel(sheet, 0, 1) - panel(later, 0, 0)).max() <= 1 < abs(panel(sheet, 0, 0) - panel(sheet, 0, 1)).max()


def test_an_interpolation_has_the_pictures_own_reconstructions_at_its_ends(tmp_path):
    there, printed = shown(tmp_path, "--what", "interpolations", "--count", 1)
    both, _ = shown(tmp_path, "--count", 2)
    assert there.shape == (ROW + 2, 8 * ROW + 2, 3) and "slerp" in printed
    for i, column in enumerate((0, 7)):
        assert abs(panel(there, 0, column) - panel(both, 1, i)).max() <= 1
    straight, printed = shown(tmp_path, "--what", "interpolations", "--count", 1, "--path", "linear")
    assert "linear" in printed and abs(straight - there).max() > 1


def test_traversals_name_the_latents_and_change_one_place_each(tmp_path):
    sheet, printed = shown(tmp_path, "--what", "traversals", "--count", 2)
    lines = printed.splitlines()[:2]
    assert all("channel" in line and "nats a picture" in line for line in lines)
    assert sheet.shape == (2 * ROW + 2, 8 * ROW + 2, 3)
    assert abs(panel(sheet, 0, 0) - panel(sheet, 0, 7)).max() > 5
    assert (panel(sheet, 0, 0) == panel(sheet, 0, 7)).mean() > 0.5  # far from the latent's place


def test_a_traversal_of_ones_own_picture_has_the_latents_that_say_most_of_held_out_ones(tmp_path, monkeypatch):
    sizes, tiled = set(), Autoencoder.features

    def seen(self, image, *, tile=0):
        sizes.add(tile)
        return tiled(self, image, tile=tile)

    monkeypatch.setattr(Autoencoder, "features", seen)
    picture = min((SCRIPTS.parent / "data" / "sample").glob("*.[jp][pn]g"))
    asked = ("--what", "traversals", "--count", 2, "--tile", 32)
    _, printed = shown(tmp_path, *asked)
    sheet, of_ones_own = shown(tmp_path, *asked, "--images", picture)
    assert of_ones_own.splitlines()[:2] == printed.splitlines()[:2] and sizes == {32}
    back, _ = shown(tmp_path, "--images", picture)
    assert abs(panel(sheet, 0, 3) - panel(back, 1, 0)).mean() < 8  # but for the place that changes


def test_pictures_of_ones_own_are_cut_and_scaled_and_large_ones_go_in_tiles(tmp_path):
    files = sorted((SCRIPTS.parent / "data" / "sample").glob("*.png"))[:2] or None
    files = files or sorted((SCRIPTS.parent / "data" / "sample").glob("*.jpg"))[:2]
    options = ("--images", *files, "--size", 256)
    whole, _ = shown(tmp_path, *options)
    tiled, _ = shown(tmp_path, *options, "--tile", 128)
    assert whole.shape == tiled.shape == (2 * 258 + 2, 8 * 258 + 2, 3)
    assert 0 < abs(whole - tiled).mean() < 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("nowhere", "nowhere"),
        ("--count 0", "--count 0 is not at least 1"),
        ("--what samples --seed -1", "--seed -1"),
        ("--what samples --seed 4294967290 --count 9", "is not a number from 0 to 2^32 - 9; try --seed 0"),
        ("--seed 0", "--seed is of --what samples; leave it out with --what reconstructions"),
        ("--what samples --temperature -1", "--temperature -1.0"),
        ("--temperature 1", "--temperature is of --what samples"),
        ("--what samples --path linear", "--path is of --what interpolations"),
        ("--images README.md", "README.md is not a readable picture"),
        ("--images data/sample/none.png", "none.png"),
        ("--images data/sample/none.png --count 2", "--images are shown as they are given; leave out --count 2"),
        ("--what samples --images data/sample/none.png", "--images are not for --what samples"),
        ("--what interpolations --images a.png b.png c.png", "3 pictures make no pairs"),
        ("--what traversals --images a.png b.png", "--what traversals is of one picture, not of 2"),
        ("--tile 8", "tile 8 is too small"),
        ("--size 72", "72 is not a multiple of 16"),
        ("--what samples --size 70", "--size 70 is not a multiple of 4; try 68"),
        ("--size 70", "--size 70 is not a multiple of 4; try 68"),
        ("--what samples --size 2", "--size 2 is not a multiple of 4; try 4"),
        ("--images a.png --size 0", "--size 0 is not at least 1"),
        ("--device abacus", "--device abacus"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert_one_line(call("sample_autoencoder.py", "--out", tmp_path / "out", *args.split()), says)
    assert not (tmp_path / "out").exists()


def test_what_a_first_stage_cannot_show_is_told(coded, tmp_path):
    def told(folder, what, says, *more):
        assert_one_line(call("sample_autoencoder.py", folder, "--what", what, "--out", tmp_path, *more), says)

    told(coded, "traversals", "a TwoLevels bottleneck has no KL")
    told(coded, "samples", "tile 8 is too small", "--tile", 8)
    (coded / "prior").rename(tmp_path / "prior")
    try:
        told(coded, "samples", "train a prior of the codes with scripts/train_prior.py")
    finally:
        (tmp_path / "prior").rename(coded / "prior")


def test_what_can_be_told_beforehand_is_told_before_the_prior_draws(coded, tmp_path, monkeypatch):
    monkeypatch.setattr(CodePrior, "draw", lambda *_, **__: pytest.fail("it drew"))
    (tmp_path / "file").touch()
    for more, says in (
        (("--tile", 8, "--out", tmp_path), "tile 8 is too small"),
        (("--out", tmp_path / "file" / "grids"), f"{tmp_path / 'file'} takes no file"),
    ):
        assert_one_line(call("sample_autoencoder.py", coded, "--what", "samples", *more), says)


def test_traversals_of_ones_own_picture_need_the_runs_own_for_their_measure(tmp_path):
    """And so it is no way out to give pictures."""
    settings = [setting for setting in TINY if not setting.startswith("data.")]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.effect_noise((32, 32), 64).convert("RGB").save(pictures / f"{i}.png")
    data = ("data.name=folder", f"data.path={pictures}", "data.size=32", "data.val_share=0.5")
    status, _, errors = call("train_autoencoder.py", *settings, *data, f"out={tmp_path / 'run'}")
    assert status == 0, errors
    pictures.rename(tmp_path / "elsewhere")
    own = ("--what", "traversals", "--images", tmp_path / "elsewhere" / "0.png", "--out", tmp_path / "out")
    assert_one_line(call("sample_autoencoder.py", tmp_path / "run", *own), "is measured on them; put them where")


def test_a_prior_for_a_first_stage_without_codes_is_refused_in_one_line(tmp_path):
    assert_one_line(call("train_prior.py", *TINY, f"out={tmp_path}"), "has no codes, as vq, vq2, fsq have")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("train_prior.stepz=3", "did you mean 'steps'?"),
        ("prior.layers=0", "layers 0"),
        ("--config nowhere.yaml", "no configuration file nowhere.yaml"),
    ],
)
def test_a_mistake_in_a_priors_configuration_is_told_in_one_line(tmp_path, args, says):
    assert_one_line(call("train_prior.py", f"out={tmp_path / 'run'}", *args.split()), says)
    assert not (tmp_path / "run").exists()
