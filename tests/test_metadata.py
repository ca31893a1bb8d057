"""Numbered images that say how they were made."""

import json
from dataclasses import asdict, replace

import pytest
from PIL import Image, PngImagePlugin

from ldm.config import to_dict
from ldm.metadata import CHUNK, Settings, next_number, read_settings, save_image
from ldm.sampling import Sampling

SETTINGS = Settings(
    prompt="a red star",
    negative_prompt="blue",
    seed=7,
    height=64,
    width=96,
    sampling=to_dict(Sampling().but("sample.steps=20", "guidance.scale=4.5", "sampler.eta=0.25")),
    precision="fp32",
    model="shapes",
    model_hash="0123abcdef",
)
PICTURE = Image.new("RGB", (4, 4), "red")
PROMPTS = ["", "🟥 звезда ★", "../../etc/passwd", "x" * 5_000, 'two\nlines and "quotes"', "a: b, c: d"]


def save(folder, number=0, picture=PICTURE, settings=SETTINGS):
    return save_image(picture, settings, folder, number)


def test_numbering_goes_on_after_the_highest_number(tmp_path):
    assert next_number(tmp_path) == 0
    save(tmp_path, 0)
    save(tmp_path, 41)
    (tmp_path / "00099.txt").touch()
    (tmp_path / "grid-00100.png").touch()
    (tmp_path / "²٣.png").touch()  # digits to Python, but not of ours
    assert next_number(tmp_path) == 42


def test_an_image_that_is_there_is_never_overwritten(tmp_path):
    taken = [save(tmp_path, 0)[0], save(tmp_path, 1)[0]]
    kept = [path.read_bytes() for path in taken]
    path, number = save(tmp_path, 0, Image.new("RGB", (4, 4), "blue"))
    assert (path.name, number) == ("00002.png", 2)
    assert [path.read_bytes() for path in taken] == kept


def test_an_image_that_cannot_be_written_leaves_no_file(tmp_path):
    class Broken(Image.Image):
        def save(self, file, **_):
            file.write(b"half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, picture=Broken())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_settings_come_back_as_they_were(tmp_path, prompt):
    settings = replace(SETTINGS, prompt=prompt, negative_prompt=prompt[::-1])
    path, _ = save(tmp_path, settings=settings)
    assert path.name == "00000.png"
    assert read_settings(path) == settings


def test_settings_are_there_for_image_browsers_too(tmp_path):
    path, _ = save(tmp_path)
    with Image.open(path) as image:
        lines = image.text["parameters"].split("\n")
    assert lines[:2] == ["a red star", "Negative prompt: blue"]
    pairs = dict(pair.split(": ") for pair in lines[2].split(", "))
    expected = {"Steps": "20", "Sampler": "DDIM", "CFG scale": "4.5", "Seed": "7", "Size": "96x64"}
    assert expected.items() <= pairs.items()
    assert replace(SETTINGS, negative_prompt="").parameters().count("\n") == 1


def test_an_image_of_another_program_is_refused(tmp_path):
    PICTURE.save(tmp_path / "plain.png")
    PICTURE.save(tmp_path / "plain.jpg")
    (tmp_path / "page.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # for another program to run
    for name, says in (
        ("plain.png", "holds no settings"),
        *((n, "is not a readable PNG") for n in ("plain.jpg", "page.png")),
    ):
        with pytest.raises(ValueError, match=f"{name} {says}"):
            read_settings(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", None])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="image.png is not a readable PNG image"):
        read_settings(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"prompt": "a"}']
    + [
        json.dumps({**asdict(SETTINGS), **wrong})
        for wrong in (
            {"seed": "7"},
            {"seed": True},
            {"precision": "fp8"},
            {"sampling": [1.5]},
            {"sampling": {"sample": {"steps": 0}}},
            {"sampling": {"sampler": {"name": "os.system"}}},
            {"target": "os.system"},
        )
    ]
    + [
        "[" * 100_000,
    ],
)
def test_damaged_settings_are_refused(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, text)
    PICTURE.save(tmp_path / "image.png", pnginfo=info)
    with pytest.raises(ValueError, match="image.png: the settings in it are damaged"):
        read_settings(tmp_path / "image.png")


def test_a_cut_or_altered_image_is_refused_or_read_right(tmp_path):
    path, _ = save(tmp_path)
    data = path.read_bytes()
    for i in range(0, len(data), 7):
        for torn in (data[:i], data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :]):
            path.write_bytes(torn)
            try:
                assert read_settings(path) == SETTINGS
            except ValueError as error:
                assert str(path) in str(error)
