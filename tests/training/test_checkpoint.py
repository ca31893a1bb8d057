"""Checkpoints: whole or not there, and exact."""

import pytest
import torch
from torch import nn

from ldm.files import check_folder, read_tensors, save_tensors
from ldm.training.checkpoint import load_optimizer, new_state, newest, optimizer_tensors, saved, write_whole
from ldm.training.optim import OPTIMIZERS, TrainConfig, optimizer


def save(folder, *steps, keep=9):
    for step in steps:
        with new_state(folder, step, {"torch": "2"}, keep) as staged:
            write_whole({"weights": {"w": torch.full((3,), float(step))}}, staged)


def tear(path):
    path.write_bytes(path.read_bytes()[:-3])


def names(folder):
    return [path.name for path in saved(folder)]


class Network(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.second(self.first(x).relu())


def trained(steps=3, kind="adamw"):
    """A network and its optimizer after some steps."""
    network = Network()
    opt = optimizer(network, TrainConfig(optimizer=kind))
    step(network, opt, steps)
    return network, opt


def step(network, opt, count):
    for i in range(count):
        opt.zero_grad()
        network(torch.full((4, 2), float(i + 1))).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("keep", [1, 2])
def test_rotation_keeps_the_newest(tmp_path, keep):
    save(tmp_path, 2, 4, 6, 8, keep=keep)
    assert names(tmp_path) == ["step-00000006", "step-00000008"][-keep:]


@pytest.mark.parametrize("keep", [1, 2])
def test_rotation_never_drops_the_last_whole_checkpoint(tmp_path, keep):
    """Fault 12."""
    save(tmp_path, 4, 6, 8)
    for path in saved(tmp_path)[1:]:
        tear(path / "weights.safetensors")
    save(tmp_path, 5, keep=keep)  # a run that went on from step 4 and was stopped again
    assert newest(tmp_path, warn=lambda _: None).name == "step-00000005"


def test_a_failed_save_keeps_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    """Fault 11."""
    save(tmp_path, 2)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("ldm.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 4, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    check_folder(newest(tmp_path))


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_a_broken_checkpoint_is_named_passed_over_and_replaced(tmp_path, file):
    """Fault 13."""
    save(tmp_path, 2, 4)
    (torn := saved(tmp_path)[-1] / file).unlink()
    warnings = []
    assert newest(tmp_path, warn=warnings.append).name == "step-00000002"
    assert f"step-00000004/{file}" in warnings[0]
    save(tmp_path, 4)
    assert newest(tmp_path).name == "step-00000004" and torn.exists()


def test_what_is_no_checkpoint_is_ignored(tmp_path):
    """Fault 14."""
    assert newest(tmp_path / "not" / "there") is None
    save(tmp_path, 2)
    for stray in ("step-notes", "step-3.old", ".step-00000004.77.partial", "other"):
        (tmp_path / stray).mkdir()
    (tmp_path / "step-00000009").touch()
    assert names(tmp_path) == ["step-00000002"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_comes_back_exactly(tmp_path, kind):
    network, opt = trained(kind=kind)
    save_tensors(optimizer_tensors(opt, network), tmp_path / "optimizer.safetensors")
    again = Network()
    again.load_state_dict(network.state_dict())
    put_back = optimizer(again, TrainConfig(optimizer=kind))
    load_optimizer(put_back, again, read_tensors(tmp_path / "optimizer.safetensors"))
    ours, theirs = optimizer_tensors(opt, network), optimizer_tensors(put_back, again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    step(network, opt, 3), step(again, put_back, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_the_settings_of_an_optimizer_come_from_the_configuration(tmp_path):
    network, opt = trained()
    again = Network()
    put_back = optimizer(again, TrainConfig(lr=0.5))
    load_optimizer(put_back, again, optimizer_tensors(opt, network))
    assert put_back.param_groups[0]["lr"] == 0.5
