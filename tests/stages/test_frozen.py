"""The parts that a stage takes from what the run's folder holds."""

from pathlib import Path

import pytest
import torch
from conftest import TINY

from ldm.config import load, update
from ldm.folders import save_autoencoder, save_text
from ldm.run import Run
from ldm.stages.frozen import frozen_autoencoder, frozen_stages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose folder holds an autoencoder and a text encoder that nobody trained."""
    run = load(Run, None, [*TINY, f"out={tmp_path_factory.mktemp('run')}"])
    network = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    save_autoencoder(network, run, Path(run.out, "autoencoder"))
    save_text(run.text.build(run.data.size), Path(run.out, "text"))
    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["autoencoder.width=32"], r"autoencoder was trained with autoencoder.width=16, .* asks for .*width=32: "),
        (["autoencoder.multipliers=[1,2]"], r"give autoencoder.multipliers=\[1\] to build on it, or train "),
        (["autoencoder.bounded=true", "autoencoder.width=32"], r"give autoencoder.width=16 .*bounded=false to build"),
        (["bottleneck=identity"], r"bottleneck.name=kl, and this run asks for bottleneck.name=identity"),
        (["text.layers=4"], r"text was trained with text.layers=2, and this run asks for text.layers=4: give"),
        (["text.states=last"], r"give text.states=words to build on it, or train one .* scripts/train_clip.py"),
    ],
)
def test_a_stage_of_other_settings_than_the_runs_is_refused_and_they_are_named(made, changes, says):
    with pytest.raises(ValueError, match=says):
        frozen_stages(update(made, changes), CPU)


def test_settings_of_a_stages_training_alone_may_be_others(made):
    training_alone = ["text.layout=0", "text.vision_layers=2", "bottleneck.weight=0.5", "train_clip.steps=9"]
    run, _, text = frozen_stages(update(made, training_alone), CPU)
    assert run.bottleneck == made.bottleneck  # the model tells what its autoencoder was trained with
    assert text.architecture.layers == made.text.layers
    assert frozen_autoencoder(update(made, ["text.layers=4"]), CPU)[0].text.layers == 4  # not asked for here


@pytest.mark.parametrize("missing", [["autoencoder"], ["text"], ["autoencoder", "text"]])
def test_a_dry_run_takes_random_weights_where_nothing_is_trained_yet(missing, tmp_path, capsys):
    changes = {"autoencoder": "autoencoder.multipliers=[1,2]", "text": "text.layers=4"}
    run = load(Run, None, [f"out={tmp_path}", *(changes[stage] for stage in missing)])
    with pytest.raises(ValueError, match=f"{missing[0]} is not there, .* could stand in: train it with"):
        frozen_stages(run, CPU)
    found, autoencoder, text = frozen_stages(run, CPU, stand_in=True)
    assert autoencoder.factor == (8 if "autoencoder" in missing else 4) == found.autoencoder.factor
    assert text.architecture.layers == (4 if "text" in missing else 3)
    assert not any(value.requires_grad for part in (autoencoder, text) for value in part.parameters())
    said = capsys.readouterr().out
    assert [stage for stage in ("autoencoder", "text") if f"random weights stand in for the {stage}" in said] == missing
    assert not list(tmp_path.iterdir())
