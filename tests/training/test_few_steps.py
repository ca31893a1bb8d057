"""Distillation as a stage: a student that learns its teacher's steps, what it is refused with, what it goes on with."""

from dataclasses import replace

import pytest
import torch

from ldm.config import load, to_yaml
from ldm.folders import load_model
from ldm.run import Run
from ldm.stages import train_clip, train_ldm

CPU = torch.device("cpu")
FEW = ["sampler=ddim", "guidance.scale=1", "times=uniform", "process.text_dropout=0"]


@pytest.fixture(scope="module")
def settings():
    from conftest import TINY

    torch.set_num_threads(1)
    return [option for option in TINY if not option.startswith(("autoencoder.", "text."))]  # the shipped ones stand in


@pytest.fixture(scope="module")
def base(settings, tmp_path_factory):
    """A model that says something: its last layer begins with zeros."""
    out = tmp_path_factory.mktemp("base")
    changes = ["train_ldm.steps=40", "train_ldm.lr=1e-2", "train_ldm.save_every=40", "guidance.scale=2"]
    return train_ldm(load(Run, None, [*settings, *changes, f"out={out}"]), CPU)


def taught(settings, base, out, *changes):
    return train_ldm(load(Run, None, [*settings, *FEW, f"base={base}", f"out={out}", *changes]), CPU)


def latents(model, *changes):
    """What the model draws, by ddim if ``changes`` name no other, before it is decoded."""
    sampling = model.sampling.but("sampler=ddim").but(*changes)
    kept = []

    def walk(sampler, denoise, grid, noise):
        kept.append(sampler(denoise, noise() * grid[0].norm, grid, noise))
        return kept[-1]

    prompts = ["a red star", "a blue ring", "two green squares", "a small heart"]
    list(model(prompts, sampling=sampling, walk=walk))
    return torch.cat(kept)


def test_a_student_that_is_not_guided_comes_to_where_its_guided_teacher_does(settings, base, tmp_path):
    pace = ["train_ldm.steps=150", "train_ldm.lr=3e-3", "train_ldm.ema=0.9", "train_ldm.save_every=150"]
    folder = taught(settings, base, tmp_path, "objective=progressive", *pace, "train_ldm.validate_every=150")
    teacher, student = load_model(base), load_model(folder)
    assert student.sampling.rehearsal(student.process.schedule) == (2, False)
    goal = latents(teacher, "sample.steps=4")
    before, after = (
        (latents(model, "sample.steps=2", "guidance.scale=1") - goal).square().mean().sqrt()
        for model in (teacher, student)
    )
    assert after < before / 2


def test_a_student_of_guidance_draws_as_its_guided_teacher_does_by_any_sampler(settings, base, tmp_path):
    pace = ["train_ldm.steps=150", "train_ldm.lr=3e-3", "train_ldm.ema=0.9", "train_ldm.save_every=150"]
    changes = ["objective=guided", *pace, "train_ldm.validate_every=150", "sampler=dpm_solver_pp", "sampler.eta=2"]
    teacher, student = load_model(base), load_model(taught(settings, base, tmp_path, *changes))
    assert student.sampling.guidance.scale == 1
    for steps in (2, 5):
        for sampler in ("ddim", "dpm_solver_pp", "euler_ancestral"):
            changes = [f"sampler={sampler}", f"sample.steps={steps}"]
            goal = latents(teacher, *changes)
            before, after = (
                (latents(model, *changes, "guidance.scale=1") - goal).square().mean().sqrt()
                for model in (teacher, student)
            )
            assert after < before / 2


def test_a_consistency_model_trains_with_and_without_a_teacher_and_draws_in_one_step(settings, base, tmp_path):
    for distill in ("true", "false"):
        changes = ["objective=consistency", f"objective.distill={distill}", "sample.steps=1"]
        model = load_model(taught(settings, base, tmp_path / distill, *changes))
        assert model.sampling.rehearsal(model.process.schedule) == (1, False)
        assert not torch.allclose(latents(model), latents(load_model(base), "sample.steps=1", "guidance.scale=1"))
    with pytest.raises(ValueError, match="says the end of the path and not a step of it"):
        taught(settings, tmp_path / "true" / "model", tmp_path / "student", "objective=progressive")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["objective=progressive", "base=''"], "learns from a model that is trained already; give base=MODEL"),
        (["objective=consistency", "objective.distill=true", "base=''"], "give base=MODEL"),
        (["objective=progressive", "guidance.scale=3"], "guided twice; set guidance.scale=1"),
        (["objective=guided", "guidance.scale=3"], "guided twice; set guidance.scale=1"),
        (["objective=guided", "base=''"], "give base=MODEL"),
        (
            ["objective=guided", "process.input_perturbation=0.1"],
            "process.input_perturbation 0.1 has no part .* set it to 0",
        ),
        (["objective=progressive", "sampler=dpm_solver_pp"], "set sampler=ddim"),
        (["objective=progressive", "sampler.eta=1"], "set sampler=ddim"),
        (["objective=progressive", "grid=karras", "objective.substeps=3"], "use grid=uniform"),
        (
            ["objective=consistency", "sample.steps=1", "train_ldm.optimizer=adamw", "train_ldm.shard=true"],
            "train_ldm.shard=false",
        ),
        (
            ["objective=consistency", "sample.steps=1", "grid=leading", "objective.last=1280"],
            "steps 1280 are more than the 1000 of the table",
        ),
        (["objective=consistency"], "draws in another way; set sampler=ddim sampler.eta=1000"),
        (
            ["objective=consistency", "sample.steps=1", "process.offset_noise=0.1"],
            "process.offset_noise 0.1 has no part .* set it to 0",
        ),
        (
            ["objective=consistency", "sampler.eta=1000", "process.learned_variance=true"],
            "learned_variance True has no part .* set it to False",
        ),
        (["objective=progressive", "schedule.shift=2"], r"another noise schedule .* its own: .*schedule.shift=1.5"),
    ],
)
def test_what_does_not_go_with_an_objective_is_refused_before_anything_is_trained(
    settings, base, tmp_path, changes, says
):
    with pytest.raises(ValueError, match=says):
        taught(settings, base, tmp_path, *changes)
    assert not (tmp_path / "model").exists() and not (tmp_path / "training").exists()


def test_a_teacher_that_reads_by_another_text_encoder_is_refused(settings, base, tmp_path):
    more = ["text.layers=1", "text.vision_layers=1", "train_clip.steps=1", f"out={tmp_path}"]
    train_clip(load(Run, None, [*settings, *more]), CPU)
    with pytest.raises(ValueError, match="reads text by another encoder"):
        taught(settings, base, tmp_path, "objective=progressive", "text.layers=1", "text.vision_layers=1")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("objective.substeps=3", r"another objective \(ProgressiveConfig\(substeps=2\), now ProgressiveConfig"),
        ("sample.steps=3", r"another number of steps \(2, now 3\)"),
        ("grid=quadratic", "another grid"),
        ("base={other}", "another teacher"),
        ("objective=denoising", "objective.name was progressive and is now denoising"),
        ("objective=consistency sample.steps=1", "another objective"),
    ],
)
def test_a_student_does_not_go_on_with_another_teacher_or_other_steps(settings, base, tmp_path, change, says):
    taught(settings, base, tmp_path / "run", "objective=progressive", "train_ldm.steps=2")
    if "other" in change:
        more = [*settings, f"base={base}", f"out={tmp_path / 'other'}", "train_ldm.steps=1"]
        change = f"base={train_ldm(load(Run, None, more), CPU)}"
    common = ["objective=progressive", "train_ldm.steps=4"]
    with pytest.raises(ValueError, match=says):
        taught(settings, base, tmp_path / "run", *common, *change.split())


def test_a_consistency_training_does_not_go_on_longer_for_its_grids_would_shrink(settings, base, tmp_path):
    common = ["objective=consistency", "sample.steps=1"]
    taught(settings, base, tmp_path, *common, "train_ldm.steps=2")
    with pytest.raises(ValueError, match=r"another length of the training.* \(2, now 4\)"):
        taught(settings, base, tmp_path, *common, "train_ldm.steps=4")


def test_a_student_teaches_the_steps_that_it_knows_and_no_others(settings, base, tmp_path):
    student = taught(settings, base, tmp_path / "two", "objective=progressive", "train_ldm.steps=1")
    taught(settings, student, tmp_path / "one", "objective=progressive", "train_ldm.steps=1", "sample.steps=1")
    for name, change in (("more", "sample.steps=2"), ("otherwise", "objective=consistency objective.distill=true")):
        changes = ["objective=progressive", "train_ldm.steps=1", "sample.steps=1", *change.split()]
        with pytest.raises(ValueError, match="knows 2 steps and no others"):
            taught(settings, student, tmp_path / name, *changes)


@pytest.mark.parametrize("change", ["guidance.momentum=-0.5", "sample.clip=3"])
def test_what_a_base_does_in_drawing_that_cannot_be_learned_is_refused(settings, base, tmp_path, change):
    drawing = tmp_path / "base"
    train_ldm(load(Run, None, [*settings, f"base={base}", f"out={drawing}", "train_ldm.steps=1", change]), CPU)
    with pytest.raises(ValueError, match=f"draws with {change.replace('=', ' ')}"):
        taught(settings, drawing / "model", tmp_path / "run", "objective=progressive")


def test_a_training_of_an_earlier_version_which_knew_one_objective_goes_on(settings, tmp_path, capsys, monkeypatch):
    """Its checkpoint and its configuration have no word of one."""
    run = load(Run, None, [*settings, f"out={tmp_path}", "train_ldm.steps=2"])
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "ldm.stages.stage.to_yaml", lambda run: to_yaml(run).replace("objective:\n  name: denoising\n", "")
        )
        train_ldm(run, CPU)
    state = tmp_path / "training" / "denoiser" / "state" / "step-00000002" / "state.json"
    assert "objective" not in state.read_text()
    train_ldm(replace(run, train_ldm=replace(run.train_ldm, steps=3)), CPU)
    assert "going on from" in capsys.readouterr().out
