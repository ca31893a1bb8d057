"""Bytes from strangers, at random: whatever they are, only the documented errors come out.

A few examples of each, always the same, run with the other tests; ``make fuzz`` draws many new ones.
"""

import io
import json
import os
import tarfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

pytest.importorskip("hypothesis", reason="of the dev extra")
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.config import ConfigError, load, to_dict, to_yaml
from ldm.data.shards import Shards, ShardsConfig
from ldm.data.stream import StreamConfig
from ldm.data.transforms import BrokenSample, clean_captions, parse_captions, read_image
from ldm.files import BrokenFile, check_folder, read_tensors, whole_folder
from ldm.metadata import CHUNK, Settings, read_settings
from ldm.run import Run
from ldm.sampling import Sampling
from ldm.text.vocabulary import NUM_BYTES, SPECIAL, Vocabulary
from ldm.types import Key

EXAMPLES = int(os.environ.get("LDM_FUZZ", "20"))
few = settings(max_examples=EXAMPLES, derandomize="LDM_FUZZ" not in os.environ, deadline=None, database=None)

PLACE = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(st.tuples(PLACE, st.binary(min_size=1, max_size=4)), max_size=6)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))
YAML = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        "-",
        "&a ",
        "*a",
        "!!python/name:os.system",
        "!!binary ",
        "? ",
        "|",
        "<<: ",
        "${",
        "null",
        "1e999",
        "\n",
        "  ",
    ]
)


def spoiled(data: bytes, edits: list[tuple[float, bytes]], cut: float) -> bytes:
    """``data`` with bytes written over at some places, and cut off."""
    made = bytearray(data)
    for place, change in edits:
        at = int(place * len(made))
        made[at : at + len(change)] = change
    return bytes(made[: int(cut * len(made))])


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(4):
            for ending, data in (("png", PICTURES[0]), ("txt", b"a ring"), ("json", b'{"caption": "a star"}')):
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


BYTES_ALONE = Vocabulary((*range(NUM_BYTES), *SPECIAL))
CONFIG, ARCHIVE, TENSORS = to_yaml(Run()), archive(), save({"w": torch.ones(3, 4), "b": torch.zeros(2).half()})
SETTINGS = json.dumps({**vars(Settings("a ring", "", 0, 64, 64, to_dict(Sampling()), "fp32", "m", "0"))})


@few
@given(st.one_of(st.text(max_size=60), st.lists(st.one_of(YAML, st.text(max_size=5)), max_size=12).map("".join)), PLACE)
def test_a_configuration_is_read_or_refused(text: str, place: float) -> None:
    at = int(place * len(CONFIG))
    for content in (text, CONFIG[:at] + text + CONFIG[at:]):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "run.yaml"
            path.write_text(content, encoding="utf-8", errors="surrogatepass")
            try:
                assert isinstance(load(Run, path), Run)
            except ConfigError as error:
                assert "\n" not in str(error)


@few
@given(
    st.sampled_from(["out", "data", "data.size", "train_ldm.lr", "denoiser", "grid.times", "a.b.c"]),
    st.text(max_size=12),
)
def test_an_override_is_taken_or_refused(key: str, text: str) -> None:
    try:
        assert isinstance(load(Run, None, [f"{key}={text}"]), Run)
    except ConfigError as error:
        assert "\n" not in str(error)


@few
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))))
def test_captions_are_clean_or_broken(data: bytes) -> None:
    for caption in clean_captions(data):
        assert caption and caption.isprintable() and caption == " ".join(caption.split())
        assert clean_captions(caption) == [caption]
    for kind in ("txt", "json"):
        with suppress(BrokenSample):
            assert parse_captions(data, kind)


@few
@given(st.sampled_from(PICTURES), EDITS, CUT)
def test_a_picture_is_read_or_broken(data: bytes, edits: list[tuple[float, bytes]], cut: float) -> None:
    with suppress(BrokenSample):
        assert read_image(spoiled(data, edits, cut)).mode == "RGB"


@few
@given(EDITS, CUT)
def test_an_archive_is_read_as_far_as_it_goes_or_refused(edits: list[tuple[float, bytes]], cut: float) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "0.tar").write_bytes(spoiled(ARCHIVE, edits, cut))
        try:
            shards = Shards(ShardsConfig(path=folder, size=8, val_share=0, max_broken=0.9), "train")
            for i in range(len(shards)):
                assert shards[Key(0, i)].image.shape == (3, 8, 8)
        except ValueError:
            pass  # a name that leads out, nothing left, or too much that is broken


@few
@given(EDITS, CUT, st.sampled_from(["train", "val"]))
def test_a_stream_gives_what_its_archive_has_or_is_refused(
    edits: list[tuple[float, bytes]], cut: float, split: str
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        path.write_bytes(spoiled(ARCHIVE, edits, cut))
        try:
            stream = StreamConfig(urls=str(path), val_urls=str(path), size=8, max_broken=0.9).build(split)
            for sample in islice(stream, 6):  # of training that is a pass and a half
                assert sample.image.shape == (3, 8, 8) and sample.caption
        except ValueError:
            pass  # a name that leads out, nothing left, or too much that is broken


@few
@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=40), max_size=4), st.integers(2, 20))
def test_any_text_has_tokens_that_bytes_alone_spell_too(captions: list[str], length: int) -> None:
    for vocabulary in (Vocabulary(), BYTES_ALONE):
        rows, cut = vocabulary.tokenize(captions, length)
        assert rows.shape == (len(captions), length) and 0 <= cut <= len(captions)
        ends = (rows == len(vocabulary) - 1).nonzero()  # one a caption
        assert ends[:, 0].tolist() == [*range(len(captions))]
        assert all(not row[end + 1 :].any() for row, end in zip(rows, ends[:, 1], strict=True))
        assert (rows[:, 0] == len(vocabulary) - 2).all()


@few
@given(st.one_of(st.binary(max_size=60), st.just(TENSORS)), EDITS, CUT)
def test_weights_are_read_or_refused(data: bytes, edits: list[tuple[float, bytes]], cut: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(spoiled(data, edits, cut))
        try:
            assert all(isinstance(value, torch.Tensor) for value in read_tensors(path).values())
        except BrokenFile as error:
            assert "weights.safetensors" in str(error)


@few
@given(EDITS, CUT)
def test_a_manifest_fits_or_is_refused(edits: list[tuple[float, bytes]], cut: float) -> None:
    with TemporaryDirectory() as folder:
        with whole_folder(Path(folder) / "model") as staged:
            (staged / "a").write_text("a")
        manifest = Path(folder) / "model" / "manifest.json"
        manifest.write_bytes(spoiled(manifest.read_bytes(), edits, cut))
        with suppress(BrokenFile):
            check_folder(Path(folder) / "model")


@few
@given(EDITS, CUT, st.booleans())
def test_the_settings_in_an_image_are_read_or_refused(
    edits: list[tuple[float, bytes]], cut: float, whole: bool
) -> None:
    info, file = PngInfo(), io.BytesIO()
    text = SETTINGS if whole else spoiled(SETTINGS.encode(), edits, cut).decode("utf-8", "replace")
    info.add_itxt(CHUNK, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "00000.png"
        path.write_bytes(spoiled(file.getvalue(), edits, cut) if whole else file.getvalue())
        with suppress(ValueError):
            assert isinstance(read_settings(path), Settings)
