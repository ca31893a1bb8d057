"""Weights that two processes share: the same run as one process makes, and the same tensors in its checkpoints."""

import sys
import time

import pytest
import torch
from conftest import TINY
from faulty import LineTask, NanThenDeath, nan, rank_of_two, script_of_two, steps_of, trainer
from processes import pair, torchrun
from sharded import compare_denoisers, end_in_nan, script

from ldm.config import load
from ldm.folders import load_model
from ldm.run import Run
from ldm.stages import train_ldm
from ldm.training.checkpoint import newest, read_part, saved
from ldm.training.loop import MAX_SKIPPED
from ldm.training.optim import TrainConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's processes are forked here")
UNTRAINED = [override for override in TINY if not override.startswith(("autoencoder.", "text."))]  # shipped stages
SHARED = {"shard": True, "accumulate": 2, "clip": 0.5}
FILES = ("weights", "ema", "optimizer")


def trained(folder, steps=6, bad=frozenset(), spoil=torch.clone, **settings):
    """What the newest checkpoint of two processes holds."""
    status, said = pair(rank_of_two, folder, bad, spoil, steps, **{**SHARED, **settings})
    assert status == [0, 0], said
    return held(folder / "run")


def held(run):
    path = newest(run / "state")
    parts = {name: read_part(path, name) for name in FILES}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def losses(run):
    return [line["loss"] for line in steps_of(run) if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of two processes over 6 steps, of which the third is skipped."""
    folder = tmp_path_factory.mktemp("sharded") / "run of two"
    trained(folder, bad={4}, spoil=nan)
    return folder / "run"


def test_sharded_processes_learn_what_one_process_learns_and_save_the_same_tensors(undisturbed, tmp_path):
    """Fault 19, sharded: the batch of the second rank is bad, and both skip."""
    alone = trainer(tmp_path, LineTask({4}, nan), accumulate=2, clip=0.5)
    alone.run()
    torch.testing.assert_close(losses(undisturbed), losses(tmp_path), equal_nan=True)
    for run in (undisturbed, tmp_path):
        assert [line["step"] for line in steps_of(run) if "skipped" in line] == [3]
    ours, theirs = held(undisturbed), held(tmp_path)
    assert ours.keys() == theirs.keys() and "ema.n_averaged" in ours and "optimizer.first.weight.exp_avg" in ours
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)  # shape and type too


@pytest.mark.parametrize("shard", [True, False])
def test_n_and_n_steps_of_two_processes_are_two_n_bit_for_bit(undisturbed, tmp_path, shard):
    """Fault 15, sharded, and with whole weights in each process."""
    whole = held(undisturbed) if shard else trained(tmp_path / "whole", 6, {4}, nan, shard=False)
    trained(tmp_path / "halves", 4, {4}, nan, shard=shard)
    halves = trained(tmp_path / "halves", 6, {4}, nan, shard=shard)
    assert halves.keys() == whole.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, halves[key])] == []


def test_a_sharded_run_goes_on_with_whole_weights_in_each_process(undisturbed, tmp_path):
    trained(tmp_path, 4, {4}, nan)
    ours = trained(tmp_path, 6, {4}, nan, shard=False)
    for key, value in held(undisturbed).items():
        torch.testing.assert_close(ours[key], value)


def test_where_a_rank_is_killed_all_start_again_and_nothing_is_lost(undisturbed, tmp_path, monkeypatch):
    """Fault 20, sharded: the agent of torchrun ends the other and starts both from the newest checkpoint."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # docs/scaling.md says why
    began, marker = time.monotonic(), tmp_path / "killed"
    torchrun(script_of_two, restarts=1)(tmp_path, {4, 6}, NanThenDeath(marker), 6, SHARED)  # in the fourth step
    assert marker.exists() and time.monotonic() - began < 100
    said = (tmp_path / "said-0").read_text()
    assert "going on from" in said and "step-00000002" in said, said
    ours = held(tmp_path / "run")
    assert [key for key, value in held(undisturbed).items() if not torch.equal(value, ours[key])] == []


def test_many_bad_steps_in_a_row_end_all_and_each_looks_for_the_module_in_whole_weights(tmp_path):
    """Fault 19, sharded: no process waits for another that has found what it looked for."""
    status, said = pair(end_in_nan, tmp_path)
    assert status == [1, 1], said
    assert f"{MAX_SKIPPED} steps in a row" in said
    assert "is that of 'first' (Linear), whose input is not finite" in said and "in this process all is finite" in said


def test_every_denoiser_has_the_gradients_of_its_whole_self_when_sharded(tmp_path):
    status, said = pair(compare_denoisers, tmp_path)
    assert status == [0, 0] and "FSDP" not in said, said


def test_a_model_that_was_trained_sharded_draws(tmp_path):
    out = tmp_path / "out"
    settings = ["shard=true", "optimizer=adamw", "score_every=4", "score_prompts=8"]
    options = [*UNTRAINED, "denoiser.checkpointing=true", f"out={out}", *(f"train_ldm.{each}" for each in settings)]
    status, said = pair(script, tmp_path / "said", "train_ldm.py", *options)
    assert status == [0, 0], said
    kept = read_part(newest(out / "training/denoiser/state"), "ema")
    for folder in ("model", "model-best"):
        model = load_model(out / folder)
        for key, value in model.denoiser.state_dict().items():
            assert torch.equal(value, kept[f"module.{key}"].half().float()), key
    drawn = torch.cat([image for image, _ in model(["a red star"], seed=3)])
    assert drawn.shape == (1, 3, 64, 64) and drawn.isfinite().all()
    stage = out / "training" / "denoiser"
    assert (stage / "samples" / "00000004.png").exists() and len(saved(stage / "state")) == 2


def test_one_process_has_nobody_to_share_with(tmp_path):
    """Before anything is loaded or made."""
    run = load(Run, None, [*TINY, f"out={tmp_path}", "train_ldm.shard=true", "train_ldm.optimizer=adamw"])
    with pytest.raises(ValueError, match=r"shard=true .* torchrun --nproc-per-node N, or set shard=false"):
        train_ldm(run, torch.device("cpu"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"optimizer": "muon"}, "optimizer=adamw"),
        ({"compile": True}, "compile=false"),
        ({"precision": "fp16"}, "precision=bf16"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(settings, way_out):
    with pytest.raises(ValueError, match=f"shard=true does not go with .*; try {way_out}"):
        TrainConfig(shard=True, **settings)


@pytest.mark.parametrize("stage", ["autoencoder", "clip", "classifier", "prior"])
def test_other_networks_than_the_denoiser_are_not_sharded(stage):
    section = f"train_{stage}"
    with pytest.raises(ValueError, match=f"{section}.shard=true: only the denoiser"):
        load(Run, None, [f"{section}.shard=true", f"{section}.optimizer=adamw"])
