"""Every command that the README, the docs and the shipped model's card write is understood by its script."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import ldm.cli
from ldm.autoencoders.codes import num_codes
from ldm.cli import given_sampling
from ldm.config import load
from ldm.denoisers.unet import UNetConfig
from ldm.run import Run
from ldm.sampling import Sampling

ROOT = Path(__file__).parent.parent
PAGES = sorted({ROOT / "README.md", *(p for at in ("docs", "data", "ldm") for p in (ROOT / at).rglob("*.md"))})
START = r"(?:\w+=\S+ +)*(?:\S*/)?(?:python|torchrun)\s"
WRITTEN = re.compile(rf"^ {{4}}({START}(?:[^\n\\]|\\\n)*)|`({START}[^`]+)`", re.M)  # on lines of its own, or within one
COMMAND = re.compile(r"\s((?:scripts|benchmarks)/\w+\.py)\b(.*)", re.S)
LEFT_OPEN = {"...", "…"}
EXAMPLES = {"denoiser=stack", "MODEL/config.yaml"}  # what the reader is to write or to name


def commands():
    """(script, arguments) of every command; names in capitals, which stand for a file or a folder, are read as such."""
    for page in PAGES:
        for alone, within in WRITTEN.findall(page.read_text()):
            if found := COMMAND.search((alone or within).replace("\\\n", " ")):
                words = [word for word in shlex.split(found[2], comments=True) if word not in LEFT_OPEN]
                yield pytest.param(found[1], words, id=f"{page.relative_to(ROOT)}: {found[1]} {' '.join(words)}"[:120])


class Understood(Exception):
    """Ends a script where it has read its arguments."""


def read_by(script, words, monkeypatch):
    """The arguments as ``script`` reads them."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(self, args=None, namespace=None, parse=parse):
            raise Understood(parse(self, args, namespace))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(ldm.cli, "keep_freed", lambda: None)  # it is of the whole process
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Understood) as caught:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return caught.value.args[0]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("train_*.py")))
def test_the_configuration_in_a_trainings_help_has_what_it_trains(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    (shown,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  python") and "--config" in line
    ]
    _, _, _, file, *overrides = shlex.split(shown)
    run = load(Run, ROOT / file, overrides)
    stage = script.removeprefix("train_").removesuffix(".py")
    if stage == "prior":
        assert num_codes(run.bottleneck.build(run.autoencoder.channels))
    if stage in ("clip", "unclip", "classifier", "control"):
        assert not run.text.model
    if stage == "unclip":
        assert run.unclip.decoder
    if stage == "control":
        assert isinstance(run.denoiser, UNetConfig)


@pytest.mark.parametrize(("script", "words"), commands())
def test_a_documented_command_is_understood(script, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if not re.search("ArgumentParser|run_script", (ROOT / script).read_text()):
        assert words == []  # it takes none, and would begin
        return
    args = read_by(script, words, monkeypatch)
    if {"sampler", "set"} <= vars(args).keys():
        Sampling().but(*given_sampling(args))
    if script.startswith("scripts/train_") and not EXAMPLES & {*words}:
        load(Run, args.config, args.overrides)


def test_commands_of_every_kind_are_found():
    found = [each.values for each in commands()]
    assert len(found) > 100
    for script, words in (
        (
            "scripts/txt2img.py",
            ["--from-file", "data/prompts.txt", "--outdir", "outputs/readme", "--grid"],
        ),  # .venv/bin
        ("benchmarks/scorer.py", []),  # in a table
        (
            "scripts/train_ldm.py",
            ["out=runs/seed1", "train_ldm.seed=1", "train_ldm.steps=4096", "train_ldm.score_every=512"],
        ),
    ):
        assert (script, words) in found


def test_an_option_that_no_script_has_would_be_found(monkeypatch):
    with pytest.raises(SystemExit):
        read_by("scripts/txt2img.py", ["--prompt", "a star", "--stepz", "3"], monkeypatch)
