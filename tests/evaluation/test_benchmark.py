"""Pictures that other programs made: those to be scored, which must be exact, and true ones, which may be anything."""

import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.benchmark import read_folder, read_reference


@pytest.fixture
def folder(tmp_path):
    """Pictures of one colour each, "2.png" before "10.png", the latter wide and in a folder below."""
    (tmp_path / "below").mkdir()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(tmp_path / "2.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "grid-0000.png")
    Image.new("RGBA", (300, 100), (200, 100, 0, 255)).save(tmp_path / "below" / "10.webp", lossless=True)
    return tmp_path


def test_true_pictures_are_of_any_form_and_from_folders_below_too(folder):
    found = read_reference(folder, 48)
    assert found.shape == (2, 48, 48, 3) and found.dtype == np.uint8
    assert sorted(np.unique(picture.reshape(-1, 3), axis=0).tolist() for picture in found) == [
        [[10, 20, 30]],
        [[200, 100, 0]],
    ]


def test_true_pictures_of_the_size_are_taken_as_they_are(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(read_reference(tmp_path, 64)[0], picture)


def test_a_folder_without_true_pictures_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("a red star")
    with pytest.raises(ValueError, match="holds no pictures; .png, .jpg"):
        read_reference(tmp_path, 64)


def test_a_true_picture_that_cannot_be_read_is_named(folder):
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"torn.png is not a readable picture"):
        read_reference(folder, 64)


def test_pictures_to_be_scored_are_of_the_folder_itself_and_squares_of_one_size(folder):
    assert read_folder(folder, 1).shape == (1, 64, 64, 3)
    Image.new("RGB", (64, 65)).save(folder / "10.png")
    with pytest.raises(ValueError, match="10.png has 64 x 65 pixels; all must be squares of one size"):
        read_folder(folder, 2)


def test_pictures_to_be_scored_come_in_the_order_of_the_numbers_in_their_names(folder):
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "10.png")
    assert read_folder(folder, 2)[:, 0, 0].tolist() == [[10, 20, 30], [1, 2, 3]]
