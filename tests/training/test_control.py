"""ControlNets as a stage: trained, saved, loaded, drawn with; and what they are refused with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import assert_one_line, call
from conftest import UNET
from PIL import Image

from ldm.config import load
from ldm.data.hints import HINTS
from ldm.denoisers.control import Controlled
from ldm.files import BrokenFile, read_tensors
from ldm.folders import load_control, load_model, shipped_model
from ldm.run import Run
from ldm.stages import control, train_control, train_ldm
from ldm.training.log import read
from ldm.types import Batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny model of the shipped latents, and a ControlNet of it."""
    torch.set_num_threads(1)
    made = load(Run, None, [*UNET, f"out={tmp_path_factory.mktemp('run')}"])
    train_ldm(made, CPU)
    train_control(made, CPU)
    return made


def test_the_stage_logs_validates_and_draws(run):
    folder = Path(run.out, "training", "control")
    last = [line for line in read(folder / "log.jsonl") if "val_loss" in line][-1]
    assert last.keys() >= {"val_loss", "val_loss_shuffled", "val_loss_without"}
    assert (folder / "samples" / "00000004.png").stat().st_size > 0


def test_validation_is_that_of_the_frozen_model_before_anything_is_learned(run, tmp_path):
    changes = ["train_control.lr=1e-12", "train_control.weight_decay=0", f"base={run.out}/model", f"out={tmp_path}"]
    train_control(load(Run, None, [*UNET, *changes]), CPU)
    log = read(tmp_path / "training" / "control" / "log.jsonl")
    last = [line for line in log if "val_loss" in line][-1]
    assert last["val_loss"] == pytest.approx(last["val_loss_without"], rel=1e-6)
    assert last["val_loss_shuffled"] == pytest.approx(last["val_loss_without"], rel=1e-6)


def test_what_is_loaded_is_what_was_trained_and_it_changes_the_picture(run):
    model = load_model(Path(run.out) / "model")
    control, made_by = load_control(Path(run.out) / "control", model)
    assert made_by.control.hint == "edges" and made_by.denoiser == run.denoiser
    held = read_tensors(Path(run.out) / "control" / "control.safetensors")
    assert all(torch.equal(value.half(), held[key]) for key, value in control.state_dict().items())
    plain = model
    drawn = []
    for hint in (torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), None):
        denoiser = plain.denoiser if hint is None else Controlled(plain.denoiser, control, hint)
        followed = load_model(Path(run.out) / "model")
        followed.denoiser = denoiser
        images = [image for image, _ in followed(["a red star", "a ring"], seed=1)]
        drawn.append(torch.cat(images))
    assert drawn[0].shape == (2, 3, 64, 64)
    assert all(not torch.allclose(a, b) for a, b in ((drawn[0], drawn[1]), (drawn[0], drawn[2])))


def test_a_control_of_another_model_is_refused(run, tmp_path):
    with pytest.raises(BrokenFile):
        load_control(Path(run.out) / "control", load_model(shipped_model()))
    other = load(Run, None, [*UNET, "schedule.shift=3", f"out={tmp_path}", "train_ldm.steps=1"])
    with pytest.raises(ValueError, match="another noise schedule"):
        load_control(Path(run.out) / "control", load_model(train_ldm(other, CPU)))


def test_a_dit_has_none(tmp_path):
    dit = ["denoiser=dit", "denoiser.patch=2", "denoiser.width=32", "denoiser.depth=1", "denoiser.heads=2"]
    others = [option for option in UNET if not option.startswith("denoiser")]
    made = load(Run, None, [*others, *dit, f"out={tmp_path}", "train_ldm.steps=1"])
    train_ldm(made, CPU)
    with pytest.raises(ValueError, match="denoiser is a DiT, and a ControlNet is a copy of a U-Net"):
        train_control(made, CPU)
    assert not (tmp_path / "control").exists()


def test_a_run_does_not_go_on_with_another_hint_or_another_model(run, tmp_path):
    common = [*UNET, f"out={run.out}", "train_control.steps=6"]
    with pytest.raises(ValueError, match=r"another hint \(edges, now gray\)"):
        train_control(load(Run, None, [*common, "control.hint=gray"]), CPU)
    shutil.copytree(run.out, tmp_path / "run")
    out = f"out={tmp_path / 'run'}"
    train_ldm(load(Run, None, [*UNET, out, "train_ldm.steps=5"]), CPU)
    with pytest.raises(ValueError, match="another denoiser"):
        train_control(load(Run, None, [*UNET, out, "train_control.steps=6"]), CPU)


def test_a_control_beside_another_denoiser_of_the_same_kind_is_warned_of(run, tmp_path, capsys):
    further = load(Run, None, [*UNET, f"base={run.out}/model", f"out={tmp_path}", "train_ldm.steps=1"])
    load_control(Path(run.out) / "control", load_model(train_ldm(further, CPU)))
    assert "was trained beside another denoiser" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("denoiser.width=24", "denoiser.width=24 is asked for, and .*model has 16"),
        ("schedule.shift=2", "schedule.shift=2.0 is asked for, and .* has 1.5"),
        ("process.target=v", "process.target=v is asked for"),
    ],
)
def test_what_is_not_the_models_is_refused_and_not_passed_over(run, change, says):
    with pytest.raises(ValueError, match=says):
        train_control(load(Run, None, [*UNET, f"out={run.out}", change]), CPU)


def test_the_runs_own_model_comes_before_its_base(run, capsys):
    changes = ["train_control.steps=4", f"base={shipped_model()}"]
    train_control(load(Run, None, [*UNET, f"out={run.out}", *changes]), CPU)
    assert f"building on {run.out}/model" in capsys.readouterr().out


def test_a_model_for_few_steps_has_none(run, tmp_path):
    few = ["objective=consistency", "sampler=ddim", "sample.steps=1"]
    train_ldm(load(Run, None, [*UNET, *few, f"out={tmp_path}", "train_ldm.steps=1"]), CPU)
    with pytest.raises(ValueError, match="was trained by objective=consistency"):
        train_control(load(Run, None, [*UNET, f"out={tmp_path}"]), CPU)


def test_a_hint_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="hint 'lines' is not one of edges, gray, half, quarter, coarse"):
        load(Run, None, ["control.hint=lines"])


@pytest.mark.parametrize("noise_level", [-0.1, 1.5])
def test_noise_on_a_hint_is_a_share(noise_level):
    with pytest.raises(ValueError, match=f"noise_level {noise_level} is not in"):
        load(Run, None, [f"control.noise_level={noise_level}"])


@pytest.mark.parametrize(("options", "panels"), [((), 4), (("--drawn",), 3), (("--control-scale", 0), 4)])
def test_a_picture_is_traced(run, tmp_path, options, panels):
    picture, out = tmp_path / "square.png", tmp_path / "out.png"
    Image.fromarray(np.pad(np.full((32, 32, 3), 255, np.uint8), ((16, 16), (16, 16), (0, 0)))).save(picture)
    common = ("--image", picture, "--prompt", "a star", "--ckpt", f"{run.out}/model", "--n_samples", 2, "--out", out)
    status, printed, errors = call("edit.py", "trace", "--control", f"{run.out}/control", *options, *common)
    assert status == 0, errors
    assert np.asarray(Image.open(out)).shape == (68, 66 * panels + 2, 3)
    assert "what was to be followed (edges) differs in the results by" in printed
    assert ("the picture, what was to be followed" in printed) == (options != ("--drawn",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--control", "{out}/no"), "{out}/no"),
        (("--control", "{out}/model"), "made_from.json"),
        (("--control", "{out}/control", "--control-scale", "inf"), "--control-scale inf is no finite number"),
        (("--control", "{out}/control", "--ckpt", str(shipped_model())), "control.safetensors"),
    ],
)
def test_a_mistake_in_tracing_is_told_in_one_line(run, tmp_path, options, says):
    picture, out = tmp_path / "red.png", tmp_path / "out.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    common = ("--image", picture, "--prompt", "a", "--ckpt", f"{run.out}/model", "--out", out)
    given = [option.format(out=run.out) for option in options]
    assert_one_line(call("edit.py", "trace", *common, *given), says.format(out=run.out))
    assert not out.exists()


def traced(run, out, *options):
    """The result of edit.py trace with seed 5, as numbers (64, 64, 3)."""
    picture = out.with_name("square.png")
    Image.fromarray(np.pad(np.full((32, 32, 3), 255, np.uint8), ((16, 16), (16, 16), (0, 0)))).save(picture)
    common = ("--image", picture, "--prompt", "a star", "--ckpt", f"{run.out}/model", "--seed", 5, "--n_samples", 1)
    common = (*common, "--out", out)
    status, _, errors = call("edit.py", "trace", "--control", f"{run.out}/control", *options, *common)
    assert status == 0, errors
    return np.asarray(Image.open(out))[2:66, -66:-2].astype(int)


def test_a_trace_of_no_weight_is_the_models_own_picture_and_one_of_more_is_not(run, tmp_path):
    options = ("--prompt", "a star", "--ckpt", f"{run.out}/model", "--seed", 5, "--outdir", tmp_path)
    assert call("txt2img.py", *options)[0] == 0
    own = np.asarray(Image.open(tmp_path / "00000.png")).astype(int)
    assert abs(traced(run, tmp_path / "none.png", "--control-scale", 0) - own).max() <= 1
    assert abs(traced(run, tmp_path / "much.png", "--control-scale", 30) - own).max() > 1


def test_each_picture_is_followed_by_its_own_hint(run, monkeypatch, tmp_path):
    found, told = [], []
    monkeypatch.setattr(control, "run_training", lambda task, *_: found.append(task))
    train_control(load(Run, None, [*UNET, f"base={run.out}/model", f"out={tmp_path}", "control.hint=gray"]), CPU)
    (task,) = found
    batch = next(task.batches(0, 0, 1))
    task.objective = lambda network, *given: told.append(given) or torch.zeros(1)
    task.loss(task.network, batch, 0, 0)
    ((latent, asked, *_),) = told
    for row in range(len(batch.captions)):
        alone = Batch(batch.image[row : row + 1], batch.captions[row : row + 1])
        torch.testing.assert_close(latent[row], task.model.encode(alone).latent[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(asked.hint[row], HINTS["gray"].of(alone.image)[0].expand_as(asked.hint[row]))
