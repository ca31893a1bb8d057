"""Numbers that are not finite: skipped, counted, and traced to a module; losses that leap are logged."""

import math

import pytest
import torch
from faulty import Line, LineTask, nan, rank_of_two, steps_of, trainer
from processes import pair
from torch import nn

from ldm.files import read_tensors
from ldm.training.checkpoint import newest
from ldm.training.guards import FEWEST, Spikes, all_finite, culprit
from ldm.training.loop import MAX_SKIPPED


def tensors(made):
    parts = {"weights": made.network.state_dict(), "average": made.average.state_dict()}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


def test_a_step_that_is_not_finite_changes_neither_weights_nor_average_nor_schedule(tmp_path):
    """Fault 19, in one process."""
    made = trainer(tmp_path, LineTask({2}, nan), decay="linear", steps=10)
    batches = made.task.batches(0, 0, 1)
    for _ in range(2):
        made.train_step(batches)
    before, rate = tensors(made), made.learners[0].schedule.get_last_lr()
    made.train_step(batches)
    after = tensors(made)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert made.learners[0].schedule.get_last_lr() == rate and made.skipped == 1 and made.step == 3
    made.train_step(batches)
    assert made.skipped == 0 and made.learners[0].schedule.get_last_lr() < rate
    assert not torch.equal(before["weights.first.weight"], made.network.first.weight)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_loss_moves_by_itself_is_as_before_after_a_step_that_is_skipped(tmp_path, accumulate):
    """Fault 19."""
    task = LineTask({2 * accumulate - 1}, nan)  # the last of the second step
    parts = (task.network, task.learned)
    for part in parts:
        part.register_buffer("calls", torch.tensor(0))

    def count(*_):
        for part in parts:
            part.calls += 1

    task.network.first.register_forward_hook(count)
    made, found = trainer(tmp_path, task, accumulate=accumulate), []
    batches = task.batches(0, 0, 1)
    for _ in range(3):
        made.train_step(batches)
        found.append([int(part.calls) for part in parts])
    assert found == [[accumulate] * 2, [accumulate] * 2, [2 * accumulate] * 2]


def test_a_resumed_schedule_does_not_count_steps_that_were_skipped(tmp_path):
    settings = {"decay": "linear", "steps": 10}
    made = trainer(tmp_path, LineTask({0, 2}, nan), **settings)
    batches = made.task.batches(0, 0, 1)
    for _ in range(4):
        made.train_step(batches)
    made._save()
    again = trainer(tmp_path, LineTask(), **settings)
    assert (again.step, again.learners[0].schedule.last_epoch) == (4, 2)
    assert again.learners[0].lr == made.learners[0].lr == pytest.approx(0.8e-2)


def test_fp16s_scaler_takes_the_next_gradient_after_a_step_that_was_skipped_for_a_loss(tmp_path, monkeypatch):
    (learner,) = trainer(tmp_path, LineTask()).learners
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    monkeypatch.setattr(learner.accelerator, "scaler", scaler, raising=False)
    before = learner.network.first.weight.clone()
    for _ in range(2):
        scaler.scale(learner.network(torch.ones(2, 4)).sum()).backward()
        scaler.unscale_(learner.opt.optimizer)
        learner.update(finite=False, overflow=False)
    assert torch.equal(learner.network.first.weight, before) and learner.schedule.last_epoch == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stops_after_many_bad_steps_in_a_row_and_names_the_module(tmp_path, accumulate):
    """Fault 19: the weights before are those of the last checkpoint."""

    task = LineTask({*range(4 * accumulate, 10_000)}, nan)
    told = rf"line: .* {MAX_SKIPPED} steps in a row .*'first' \(Linear\), whose input is not finite"
    with pytest.raises(FloatingPointError, match=told):
        trainer(tmp_path, task, steps=100, accumulate=accumulate).run()
    assert all_finite(read_tensors(newest(tmp_path / "state") / "weights.safetensors"))
    skipped = [line["skipped"] for line in steps_of(tmp_path) if "skipped" in line]
    assert skipped == [*range(1, MAX_SKIPPED + 1)]


def of_line(network, x):
    return lambda: network(x).square().mean()


def found_in(network, loss):
    return culprit({"": network}, lambda: [loss()])


def test_the_first_module_with_an_output_that_is_not_finite_is_named():
    network, x = Line(), torch.ones(2, 4)
    network.second.bias.data[0] = math.inf
    assert "'second' (Linear), whose weights are not finite" in found_in(network, of_line(network, x))
    assert "'first' (Linear), whose input is not finite" in found_in(network, of_line(network, x * math.nan))
    network = Line()
    network.first.weight.data[:] = 1e30
    assert "'first' (Linear), from finite input" in found_in(network, of_line(network, x * 1e30))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_gradient_that_is_not_finite_is_traced_from_behind():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    network = nn.Sequential(nn.Linear(2, 2), Root(), nn.Linear(2, 1))
    for parameter in network[0].parameters():
        parameter.data.zero_()  # the root of 0 is finite, and its derivative is not
    said = found_in(network, lambda: network(torch.ones(1, 2)).sum())
    assert "the first gradient that is not, from behind, is that of '0.bias'" in said
    assert "the loss is not" in found_in(network, lambda: network(torch.ones(1, 2)).sum().log() * math.inf)
    assert "in this process all is finite" in found_in(Line(), of_line(Line(), torch.ones(1, 4)))


def test_of_two_networks_the_first_that_went_wrong_is_named():
    critic, x = Line(), torch.ones(2, 4)

    def said(factor):
        network = Line()
        losses = lambda: [network(x).square().mean(), critic(x).square().mean() * factor]  # noqa: E731
        return culprit({"": network, "rival": critic}, losses)

    assert "the loss is not (rival)" in said(math.inf)
    assert "in this process all is finite" in said(1.0)
    hook = critic.second.bias.register_hook(lambda grad: grad * math.inf)
    assert "that is not, from behind, is that of 'rival.second.bias'" in said(1.0)
    hook.remove()
    critic.first.weight.data[0] = math.nan
    assert "that of 'rival.first' (Linear), whose weights are not finite" in said(1.0)


def test_a_leap_of_the_loss_is_a_spike_and_its_usual_scatter_is_not():
    spiked, generator = Spikes(), torch.Generator().manual_seed(0)
    losses = (1 + 0.1 * torch.randn(400, generator=generator)).tolist()
    assert not any(spiked(loss) for loss in losses)
    assert [spiked(loss) for loss in (3.0, 1.0, 3.0, math.nan)] == [True, False, True, False]
    young = Spikes()
    assert not any(young(loss) for loss in [*losses[: FEWEST - 1], 99.0])


def test_spikes_are_logged(tmp_path):
    task = LineTask({40}, lambda x: 30 * x)
    trainer(tmp_path, task, steps=42, lr=1e-9).run()
    assert [line["step"] for line in steps_of(tmp_path) if "loss_spike" in line] == [41]


def test_two_ranks_skip_a_step_together_and_learn_what_one_process_learns(tmp_path):
    """Fault 19: the batch of the second rank is bad, and both skip. Fault 21: both make the same number of steps."""
    status, said = pair(rank_of_two, tmp_path / "two", {1, 3}, nan, 6)
    assert status == [0, 0], said
    ours, theirs = (torch.load(tmp_path / "two" / f"weights-{i}.pt") for i in range(2))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert [line["step"] for line in steps_of(tmp_path / "two" / "run") if "skipped" in line] == [2, 4]
    alone = trainer(tmp_path / "one", LineTask({1, 3}, nan))
    alone.run()
    for key, value in alone.network.state_dict().items():
        torch.testing.assert_close(ours[key], value)
