"""benchmarks/first_stages.py: a row for each first stage, and what it says of compression."""

import sys

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from benchmarks import first_stages, photographs
from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import mark, through, true_pictures
from ldm.evaluation.prompts import TRAINING_SEED, prompt_set
from ldm.folders import load_autoencoder

SMALL = [override for override in TINY if not override.startswith("text.")]  # the shipped text encoder serves


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """Calls the script for runs of these bottlenecks; gives the lines, a list of cells each, the head first."""

    def call(*bottlenecks, options=(), data=()):
        files = [tmp_path / f"{name}.yaml" for name in bottlenecks]
        for name, file in zip(bottlenecks, files, strict=True):
            file.write_text(f"out: {tmp_path / name}\nbottleneck: {{name: {name}}}\n")
        few = ("--prompts-per-category", "1")
        small = [override for override in SMALL if not (data and override.startswith("data."))]
        told = [*map(str, files), *few, *options, "--set", *small, *data]
        monkeypatch.setattr(sys, "argv", ["first_stages.py", *told])
        first_stages.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [line.strip("| ").split(" | ") for line in lines]

    return call


def test_each_first_stage_is_trained_looked_at_and_given_to_a_denoiser(table, tmp_path):
    picture = tmp_path / "all.png"
    head, _, *rows = table("kl", "vq2", options=("--denoiser", "2", "--picture", str(picture)))
    assert [row[0] for row in rows] == ["kl", "vq2"]
    assert {len(row) for row in rows} == {len(head)}
    for row in rows:
        autoencoder, _ = load_autoencoder(tmp_path / row[0] / "autoencoder")
        prompts = prompt_set(1, TRAINING_SEED)
        pictures = true_pictures(prompts, 64)
        report, read = autoencoder_report(autoencoder, pictures), mark(prompts, through(autoencoder, pictures)).score
        parameters = sum(weight.numel() for weight in autoencoder.parameters())
        cells = dict(zip(head, row, strict=True))
        told = [cells[name] for name in ("parameters", "PSNR", "SSIM")]
        assert told == [f"{parameters / 1e6:.2f} M", f"{report.psnr:.1f} dB", f"{report.ssim:.3f}"]
        assert cells[first_stages.READ].startswith(f"{100 * read.overall.value:.1f} % (")
    assert "nats" in rows[0][-2] and rows[1][-2].count("perplexity") == 2
    with Image.open(picture) as shown:
        assert shown.size == (10 * 66 + 2, 3 * 66 + 2)  # the originals, and a row for each
    assert [path.name for path in (tmp_path / "kl").glob("denoiser-*/model")] == ["model"]


def test_other_pictures_are_looked_at_but_not_read(table, tmp_path):
    Image.effect_noise((96, 64), 64).convert("RGB").save(tmp_path / "noise.png")
    for number, tile in enumerate(photographs.tiles(np.asarray(Image.open(tmp_path / "noise.png")), 16)):
        (tmp_path / "photographs" / "noise").mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(tmp_path / "photographs" / "noise" / f"{number}.png")
    own = ("data.name=folder", f"data.path={tmp_path / 'photographs'}", "data.size=16", "data.val_share=0.3")
    head, _, row = table("fsq", options=("--out", str(tmp_path / "runs")), data=own)
    assert first_stages.READ not in head and len(row) == len(head)
    assert (tmp_path / "runs" / "fsq" / "autoencoder").is_dir()
    with pytest.raises(ValueError, match="--denoiser is scored by the shapes benchmark"):
        table("fsq", options=("--denoiser", "2"), data=own)


def test_tiles_cover_a_picture_once_but_for_what_is_left_over():
    picture = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    found = list(photographs.tiles(picture, 2))
    assert len(found) == 6
    assert np.array_equal(np.concatenate([np.concatenate(found[i : i + 2], 1) for i in (0, 2, 4)]), picture[:6, :4])


def test_one_folder_for_all_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["first_stages.py", "--set", "out=runs/one"])
    with pytest.raises(ValueError, match="--set out="):
        first_stages.main()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("kl", {}, "64 numbers, 48 times fewer"),
        ("vq", {"codes": 1024}, "160 bits, 154 times fewer"),  # 4 x 4 positions of 10 bits
        ("vq2", {"codes": 1024}, "200 bits, 123 times fewer"),  # and 2 x 2 more above them
        ("fsq", {"levels": [8, 5, 5, 5]}, "159 bits, 154 times fewer"),  # 16 log2(1,000)
        ("topk", {"k": 2}, "32 numbers, 96 times fewer, and 41 bits: which they are"),  # 16 log2(6)
    ],
)
def test_compression_counts_bits_where_there_are_codes(name, options, says):
    config = AutoencoderConfig(channels=4, width=8, multipliers=[1, 1], blocks=1, patch=4, norm="channel")
    assert first_stages.compression(config.build(BOTTLENECKS[name](**options).build(4)), 32) == says
