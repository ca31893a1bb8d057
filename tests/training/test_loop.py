"""What the loop itself does with a task: clips, gives seeds, switches modes, and tells how fast it is."""

import pytest
import torch
from faulty import LineTask, time_steps, trainer

from ldm.training import loop
from ldm.training.learner import Learner
from ldm.training.log import Log, read
from ldm.training.loop import _seed


def norms(folder, monkeypatch, clip):
    """The norm of the gradient that the optimizer is given in a first step, and the one that is told."""
    seen, update = [], Learner.update

    def watched(learner, **said):
        seen.append(torch.cat([weight.grad.flatten() for weight in learner.network.parameters()]).norm())
        update(learner, **said)

    monkeypatch.setattr(Learner, "update", watched)
    made = trainer(folder, LineTask(), clip=clip)
    told = made.train_step(made.task.batches(0, 0, 1))["gradient_norm"]
    return float(seen[-1]), float(told)


def test_a_gradient_is_brought_down_to_the_norm_asked_for_and_told_as_it_was(tmp_path, monkeypatch):
    whole, told = norms(tmp_path / "whole", monkeypatch, 0)
    assert told == pytest.approx(whole) and whole > 0.1
    clipped, told = norms(tmp_path / "clipped", monkeypatch, 0.01)
    assert clipped == pytest.approx(0.01, rel=1e-4) and told == pytest.approx(whole)


def test_every_micro_step_of_every_rank_and_run_has_a_seed_of_its_own():
    seeds = [_seed(run, micro, rank) for run in range(3) for micro in range(20) for rank in range(8)]
    assert len({*seeds}) == len(seeds)


def test_the_micro_steps_of_a_run_are_numbered_through(tmp_path, monkeypatch):
    task, seen = LineTask(), []
    loss = task.loss
    monkeypatch.setattr(task, "loss", lambda net, batch, seed, step: seen.append(seed) or loss(net, batch, seed, step))
    trainer(tmp_path, task, steps=3, accumulate=2, seed=5).run()
    assert seen == [_seed(5, micro, 0) for micro in range(6)]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_network_learns_in_training_mode_and_is_looked_at_in_evaluation_mode(tmp_path, monkeypatch, ema):
    task, modes = LineTask(), []
    loss, validate, sample = task.loss, task.validate, task.sample

    def noted(name, call):
        return lambda network, *rest, **said: modes.append((name, network.training)) or call(network, *rest, **said)

    monkeypatch.setattr(task, "loss", noted("loss", loss))
    monkeypatch.setattr(task, "validate", noted("look", validate))
    monkeypatch.setattr(task, "sample", noted("look", sample))
    trainer(tmp_path, task, steps=3, validate_every=1, sample_every=1, ema=ema).run()
    assert modes == [("loss", True), ("look", False), ("look", False)] * 3


def test_the_speed_is_that_of_the_steps_and_a_tracker_is_told_what_the_log_is(tmp_path, monkeypatch):
    time_steps(monkeypatch, loop, 0.5)
    made, tracked = trainer(tmp_path, LineTask(), batch=8, accumulate=3, validate_every=2), []
    monkeypatch.setattr(made.accelerator, "log", lambda values, step: tracked.append({"step": step, **values}))
    made.run()
    lines = read(tmp_path / "log.jsonl")
    assert {line["images_per_second"] for line in lines if "loss" in line} == {48.0}  # 3 x 8 in half a second
    assert tracked == lines and any("val_loss" in line for line in lines)


def test_a_log_goes_on_after_the_step_of_the_checkpoint_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in range(1, 6):
        log.write(step, loss=0.5 / step)
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]
    Log(path, 3).write(4, loss=9.0)
    assert [(line["step"], line["loss"]) for line in read(path)] == [(1, 0.5), (2, 0.25), (3, 0.5 / 3), (4, 9.0)]
