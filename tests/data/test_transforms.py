import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ldm.data.transforms import (
    BrokenSample,
    ImageOptions,
    Tally,
    Transform,
    captions_of,
    clean_captions,
    parse_captions,
    read_image,
    refuse_outside,
    to_images,
    to_rgb,
    to_tensor,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rng(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(seeds)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "RGBA", "LA", "PA"]
)
def test_every_mode_becomes_rgb_of_the_same_size(mode: str) -> None:
    """Fault 25."""
    made = to_rgb(Image.new(mode, (5, 3)))
    assert (made.mode, made.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    clear = Image.new(mode, (2, 2), (0,) * len(mode))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_red_becomes_pink() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


def test_the_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    read = read_image(encoded(image, transparency=0))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


def test_cmyk_jpeg_keeps_its_colour() -> None:
    """Fault 25."""
    red = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.array(red.getpixel((4, 4))) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    """Fault 25."""
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    read = read_image(encoded(Image.fromarray(values), kind))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation_is_applied(turn: int) -> None:
    """Fault 25."""
    image = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = turn
    read = read_image(encoded(image, exif=exif))
    image.getexif()[0x0112] = turn
    assert read.size == ((6, 4) if turn < 5 else (4, 6))
    assert np.array_equal(np.asarray(read), np.asarray(ImageOps.exif_transpose(image)))


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size it does not hold."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_broken(side: int) -> None:
    """Fault 24."""
    with pytest.raises(BrokenSample, match="Bomb"):
        read_image(png_header_of(side, side))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        encoded(noise(32, 32))[:500],
        encoded(noise(64, 64), "JPEG")[:900],
        b"%!PS-Adobe-3.0 EPSF-3.0",
    ],
)
def test_corrupt_bytes_are_broken(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BrokenSample):
        read_image(data)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BrokenSample):
        read_image(tmp_path / "a.png")


def test_tensors_and_pictures_convert_without_loss() -> None:
    image = noise(7, 5)
    x = to_tensor(image)
    assert x.shape == (3, 5, 7) and x.dtype == torch.float32 and x.is_contiguous()
    assert x.min() >= -1 and x.max() <= 1
    assert np.array_equal(np.asarray(to_images(x[None])[0]), np.asarray(image))


def test_values_beyond_the_range_are_clamped() -> None:
    (image,) = to_images(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 255, 128)


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(16, 16)
    assert torch.equal(Transform(16)(image, rng(0)), to_tensor(image))


@pytest.mark.parametrize("size", [(40, 16), (16, 40), (1, 5_000), (5_000, 1), (3, 3)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_any_picture_becomes_a_square(size: tuple[int, int], crop: str) -> None:
    assert Transform(16, crop)(noise(*size), rng(0)).shape == (3, 16, 16)


def test_the_centre_crop_is_the_centre() -> None:
    image = noise(20, 8)
    assert torch.equal(Transform(8)(image, rng(0)), to_tensor(image.crop((6, 0, 14, 8))))


def test_downscaling_averages_instead_of_picking_pixels() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert Transform(8)(board, rng(0)).abs().max() < 0.1


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    transform, image = Transform(8, "random", flip=True), noise(100, 8)
    first = transform(image, rng(1, 2, 3))
    assert torch.equal(first, transform(image, rng(1, 2, 3)))
    others = [transform(image, rng(*key)) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert not any(torch.equal(first, other) for other in others)


def test_random_crops_reach_both_ends() -> None:
    image = Image.fromarray(np.tile(np.arange(12, dtype=np.uint8)[None, :, None], (8, 1, 3)))
    lefts = {round((float(Transform(8, "random")(image, rng(i))[0, 0, 0]) + 1) * 127.5) for i in range(100)}
    assert lefts == {0, 1, 2, 3, 4}


def test_flip_mirrors_about_half_of_the_pictures_and_only_when_asked() -> None:
    image = noise(8, 8)
    straight = to_tensor(image)
    mirrored = [torch.equal(Transform(8, flip=True)(image, rng(i)), straight.flip(2)) for i in range(200)]
    assert 70 < sum(mirrored) < 130
    assert all(torch.equal(Transform(8)(image, rng(i)), straight) for i in range(10))


def test_validation_is_centred_and_never_mirrored() -> None:
    options = ImageOptions(size=32, crop="random", flip=True)
    assert options.transform("train") == Transform(32, "random", True)
    assert options.transform("val") == Transform(32, "center", False)
    with pytest.raises(ValueError, match="split 'test'"):
        options.transform("test")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 1_000_000},
        {"crop": "middle"},
        {"seed": -1},
        {"max_broken": 1.5},
        {"max_broken": float("nan")},
    ],
)
def test_wrong_options_are_named_with_a_way_out(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*try") as caught:
        ImageOptions(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        (b"\xef\xbb\xbfa red star\n", ["a red star"]),
        ("a red star".encode("utf-16"), ["a red star"]),
        (b"a r\xffed\x00 star", ["a red star"]),
        (b"one\r\n\r\n  two \t words \n", ["one", "two words"]),
        ("ein grüner Stern ⭐".encode(), ["ein grüner Stern ⭐"]),
        (b"\xef\xbb\xbf \n\n", []),
        (b"", []),
    ],
)
def test_captions_are_cleaned(text: bytes, captions: list[str]) -> None:
    """Fault 27."""
    assert clean_captions(text) == captions


def test_captions_are_found_in_json() -> None:
    assert captions_of({"caption": "a", "text": "b"}) == ["a"]
    assert captions_of({"text": ["a", None, " ", "b"]}) == ["a", "b"]
    assert captions_of({"caption": None}) == captions_of(["a"]) == []
    assert parse_captions(b'{"caption": "a star"}', "json") == ["a star"]


@pytest.mark.parametrize(
    ("data", "kind"), [(b" ", "txt"), (b"{", "json"), (b"{}", "json"), (b"\xff", "json"), (b"[1]", "json")]
)
def test_a_member_without_a_caption_is_broken(data: bytes, kind: str) -> None:
    with pytest.raises(BrokenSample, match=kind):
        parse_captions(data, kind)


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/passwd", "..\\a.png", "C:\\a.png", ".."])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"list\.jsonl: entry '.*' leads out"):
        refuse_outside(name, "list.jsonl")


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a..b.png", "./a.png", "..a/b.png"])
def test_names_inside_are_allowed(name: str) -> None:
    refuse_outside(name, "list.jsonl")


def test_the_first_broken_sample_is_named_and_too_many_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally("samples", max_broken=0.1, floor=20)
    tally.count_broken("a.png", ValueError("torn"))
    tally.count_broken("b.png", ValueError("torn"))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["a.png"]
    with pytest.raises(ValueError, match=r"3 of 3 samples are broken, more than max_broken=0.1; the last is c.png"):
        tally.count_broken("c.png", ValueError("torn"))


def test_the_share_of_broken_samples_is_taken_of_all_that_were_read() -> None:
    tally = Tally("samples", max_broken=0.1, floor=1, read=99)
    for _ in range(11):
        tally.count_broken("a.png", ValueError("torn"))
    with pytest.raises(ValueError, match="12 of 111"):
        tally.count_broken("a.png", ValueError("torn"))
