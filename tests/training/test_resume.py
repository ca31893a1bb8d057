"""Going on from a checkpoint: bit for bit the same run, or a word of what is not the same."""

import random
import re

import numpy as np
import pytest
import torch
from conftest import TINY
from faulty import LineTask, trainer

from ldm.config import load, to_dict, to_yaml
from ldm.files import read_tensors
from ldm.run import Run
from ldm.stages import (
    train_autoencoder,
    train_classifier,
    train_clip,
    train_control,
    train_ldm,
    train_prior,
    train_unclip,
)
from ldm.training.checkpoint import newest
from ldm.training.optim import TrainConfig
from ldm.training.start import DRAWING, FREE, UNREAD, Start, changes

CPU = torch.device("cpu")
STAGES = {
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "denoiser": train_ldm,
    "classifier": train_classifier,
    "control": train_control,
    "prior": train_prior,
    "unclip": train_unclip,
}
SECTION = {"denoiser": "train_ldm"}
NEEDS = {"text": ("denoiser", "classifier", "unclip"), "picture": ("unclip",), "unclip": ("denoiser",)}
FILES = ("weights", "ema", "optimizer", "learned")
UNET = ("denoiser.width=16", "denoiser.multipliers=[1]", "denoiser.attention_levels=[]", "denoiser.heads=2")
PLAIN = [*(option for option in TINY if not option.startswith("denoiser")), *UNET]
BANDS = ("times=importance", "times.bands=2", "times.history=1")  # of denoisers: something else that is learned


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A run with the parts that the later stages build on."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parts")
    for stage in ("autoencoder", "clip", "unclip"):
        STAGES[stage](load(Run, None, [*TINY, f"out={folder}", f"train_{stage}.steps=1"]), CPU)
    train_ldm(load(Run, None, [*PLAIN, f"out={folder}", "train_ldm.steps=1"]), CPU)
    return folder


def trained(stage, parts, out, steps, workers, *changes):
    out.mkdir(exist_ok=True)
    for part in ("autoencoder", "text", "picture", "unclip"):
        if stage in NEEDS.get(part, ("denoiser", "classifier")) and not (out / part).exists():
            (out / part).symlink_to(parts / part)
    section = SECTION.get(stage, f"train_{stage}")
    settings = {"steps": steps, "workers": workers, "accumulate": 3, "decay": "constant", "warmup": 3}
    options = [f"{section}.{key}={value}" for key, value in settings.items()]
    options += [f"base={parts}/model"] if stage == "control" else []
    random.seed(steps), np.random.seed(workers), torch.manual_seed(7 * steps + workers)  # noqa: NPY002
    base = PLAIN if stage == "control" else TINY
    STAGES[stage](load(Run, None, [*base, *BANDS, "cache.use=never", f"out={out}", *options, *changes]), CPU)
    path = newest(out / "training" / stage / "state")
    held = [file for name in FILES if (file := path / f"{name}.safetensors").exists()]
    assert len(held) == 3 + (stage in ("denoiser", "control"))
    return {f"{file.stem}.{key}": value for file in held for key, value in read_tensors(file).items()}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("autoencoder", []),
        ("clip", []),
        ("denoiser", []),
        ("denoiser", ["cache.use=always"]),
        (
            "denoiser",
            [
                "objective=consistency",
                "objective.decay=0.5",
                "objective.first=2",
                "objective.last=2",
                "sample.steps=1",
                "sampler=ddim",
            ],
        ),
        ("denoiser", ["unclip.decoder=true"]),
        ("classifier", []),
        ("control", []),
        ("unclip", []),
    ],
)
def test_n_and_n_steps_are_two_n_bit_for_bit(parts, tmp_path, stage, changes):
    """Fault 15: weights, average, optimizer and what else is learned; with 0 and 2 loader workers, in mid-epoch, three
    micro-steps a step.

    The generators of all libraries are left in another state each time: nothing depends on them.
    """
    whole = trained(stage, parts, tmp_path / "whole", 2, 0, *changes)
    assert (tmp_path / "whole" / "cache").exists() == ("cache.use=always" in changes)
    for workers in (0, 2):
        out = tmp_path / f"{workers} workers"
        trained(stage, parts, out, 1, workers, *changes)
        halves = trained(stage, parts, out, 2, workers, *changes)
        assert halves.keys() == whole.keys()
        assert [key for key, value in whole.items() if not torch.equal(value, halves[key])] == []


class Numbered(LineTask):
    """Keeps the numbers of the steps that it is told."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def loss(self, network, batch, seed, step):
        self.steps.append(step)
        return super().loss(network, batch, seed, step)


def test_the_loss_is_told_the_optimizer_steps_number_wherever_the_run_goes_on(tmp_path):
    for steps, told in ((2, [0, 0, 1, 1]), (3, [2, 2])):
        task = Numbered()
        trainer(tmp_path, task, steps=steps, accumulate=2).run()
        assert task.steps == told


def settings(*overrides):
    return to_yaml(load(Run, None, overrides))


def test_settings_that_have_changed_are_shown_key_by_key_and_need_a_word(tmp_path):
    """Fault 17."""
    then = settings("train_ldm.lr=1e-3", "data.length=5")
    now = settings("train_ldm.lr=2e-3", "data.length=6", "train_ldm.steps=9")
    trainer(tmp_path, LineTask(), described=then, steps=2).run()
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, LineTask(), described=now, steps=4)
    said = str(caught.value)
    assert "step-00000002 was made with other settings: " in said and "; add --resume-changed" in said
    assert "data.length was 5 and is now 6" in said and "train_ldm.lr was 0.001 and is now 0.002" in said
    assert "steps" not in said.replace("state", "")
    made = trainer(tmp_path, LineTask(), Start(resume_changed=True), described=now, steps=4)
    assert made.step == 2
    made.run()
    assert trainer(tmp_path, LineTask(), described=now, steps=6).step == 4  # asked for once


@pytest.mark.parametrize("name", sorted(FREE))
def test_how_long_and_how_often_to_look_may_change_without_a_word(name):
    value = {"tracker": "tensorboard"}.get(name, 7)
    assert changes(settings(), settings(f"train_ldm.{name}={value}"), set()) == {}


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("out=elsewhere", {}),
        ("sampler=ddim", {}),
        ("guidance.scale=9", {}),
        ("cache.use=always", {}),
        ("train_clip.lr=1", {}),  # another stage's
        ("reconstruction.l2=9", {}),
        ("adversarial.weight=9", {}),
        ("autoencoder.decoder_width=8", {}),
        ("autoencoder.width=8", {"autoencoder.width": (64, 8)}),
        ("train_ldm.precision=fp32", {"train_ldm.precision": ("auto", "fp32")}),
        ("process.text_dropout=0.5", {"process.text_dropout": (0.1, 0.5)}),
        ("denoiser=dit", {"denoiser.name": ("unet", "dit")}),
    ],
)
def test_a_stage_asks_after_what_its_steps_read(override, shown):
    others = {name for name, value in vars(Run()).items() if isinstance(value, TrainConfig) and name != "train_ldm"}
    found = changes(settings(), settings(override), UNREAD["denoiser"] | others)
    assert {key: found[key] for key in shown} == shown and bool(found) == bool(shown)


def test_what_counts_as_unread_are_sections_and_settings_of_a_run():
    sections = to_dict(Run())
    parts = {name: part for name, part in sections.items() if isinstance(part, dict)}
    known = sections.keys() | {f"{name}.{key}" for name, part in parts.items() for key in part}
    assert sections.keys() >= DRAWING and all(unread <= known for unread in UNREAD.values())
    assert {*FREE} <= {*vars(TrainConfig())} and UNREAD.keys() == STAGES.keys()


def test_an_optimizer_finds_its_tensors_by_name_where_the_parameters_come_in_another_order(tmp_path):
    made = trainer(tmp_path, LineTask(), steps=2)
    made.run()
    task = LineTask()
    task.network.first, task.network.second = task.network.first, task.network.second
    swapped = task.network._modules
    swapped.move_to_end("first") if hasattr(swapped, "move_to_end") else swapped.update(first=swapped.pop("first"))
    again = trainer(tmp_path, task, steps=4)
    order = [name for name, _ in again.network.named_parameters()]
    assert order[0] == "second.weight"
    for name, parameter in made.network.named_parameters():
        theirs = dict(again.network.named_parameters())[name]
        for key, value in made.learners[0].opt.optimizer.state[parameter].items():
            assert torch.equal(value, again.learners[0].opt.optimizer.state[theirs][key]), (name, key)


def test_fp16s_scale_is_saved_and_put_back(tmp_path, monkeypatch):
    def with_scaler(scale):
        made = trainer(tmp_path, LineTask(), steps=4)
        monkeypatch.setattr(made.accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=scale), raising=False)
        return made

    first = with_scaler(1024.0)
    next_step = first.train_step(first.task.batches(0, 0, 1))
    assert next_step["loss"].isfinite()
    first._save()
    again = with_scaler(2.0)
    again._resume()
    assert again.accelerator.scaler.state_dict() == first.accelerator.scaler.state_dict()


def test_a_tracker_that_is_not_installed_is_told_and_the_log_is_written_all_the_same(tmp_path, capsys, monkeypatch):
    """Fault 33."""
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    monkeypatch.setattr("accelerate.tracking.is_swanlab_available", lambda: False, raising=False)
    trainer(tmp_path, LineTask(), steps=2, tracker="swanlab").run()
    said = capsys.readouterr().err
    assert re.search(r"warning: tracker 'swanlab' is not installed", said) and "log.jsonl" in said
    assert (tmp_path / "log.jsonl").read_text().count("loss") >= 2


def test_a_tracker_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tensorbord"):
        trainer(tmp_path, LineTask(), tracker="tensorbord")
