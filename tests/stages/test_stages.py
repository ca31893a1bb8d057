"""The whole chain on tiny settings: train, cache, train, save, load, draw; and what happens when it is interrupted."""

import shutil
import sys
from dataclasses import replace
from itertools import islice
from math import inf
from pathlib import Path

import pytest
import torch
from faulty import LineTask

from ldm.autoencoders import BOTTLENECKS
from ldm.caching import cache_latents
from ldm.config import load
from ldm.data.latents import LatentDataset, StaleCache
from ldm.data.loader import first_batches
from ldm.diffusion.schedules import SCHEDULES
from ldm.evaluation.prompts import CATEGORIES, prompt_set
from ldm.files import BrokenFile, read_tensors
from ldm.folders import (
    digest,
    load_autoencoder,
    load_classifier,
    load_model,
    load_text,
    save_autoencoder,
    shipped_model,
)
from ldm.run import Run
from ldm.samplers import SAMPLERS
from ldm.stages import train_autoencoder, train_classifier, train_clip, train_ldm
from ldm.stages.denoiser import scored_prompts
from ldm.stages.frozen import frozen_stages
from ldm.steering import away_from, by_classifier, by_worse_model, towards
from ldm.training.checkpoint import newest, saved
from ldm.training.denoiser import DenoiserTask
from ldm.training.log import Log, read
from ldm.training.looks import Looks
from ldm.training.optim import TrainConfig
from ldm.training.preflight import _in_half
from ldm.training.start import Start
from ldm.types import Key

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose three stages were trained on tiny settings."""
    from conftest import TINY

    torch.set_num_threads(1)
    run = load(Run, None, [*TINY, "cache.use=always", f"out={tmp_path_factory.mktemp('run')}"])
    for train in (train_autoencoder, train_clip, train_ldm, train_classifier):
        train(run, CPU)
    return run


def task_of(train, run, monkeypatch):
    """The task that ``train`` would train."""

    class Caught(Exception):
        pass

    def catch(task, *_, **__):
        raise Caught(task)

    monkeypatch.setattr(sys.modules[train.__module__], "run_training", catch)
    with pytest.raises(Caught) as caught:
        train(run, CPU)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("train", "folders"),
    [(train_autoencoder, ["autoencoder"]), (train_clip, ["text", "picture"]), (train_ldm, ["model"] * 2)],
)
def test_a_task_tells_all_that_it_exports(trained, monkeypatch, train, folders):
    """In bytes, as a dry run counts them; the model twice, since its best is kept too."""

    run = replace(trained, train_ldm=replace(trained.train_ldm, score_every=2))
    task = task_of(train, run, monkeypatch)
    for modules, folder in zip(task.exports(), folders, strict=True):
        held = [read_tensors(path) for path in Path(trained.out, folder).rglob("*.safetensors")]
        written = sum(value.numel() * value.element_size() for part in held for value in part.values())
        assert sum(map(_in_half, modules)) == written


def images(folder, **kwargs):
    return torch.cat([image for image, _ in load_model(Path(folder))(["a red star", "a ring"], seed=3, **kwargs)])


def test_the_chain_leaves_a_model_that_draws_images_of_the_right_size(trained):
    drawn = images(f"{trained.out}/model")
    assert drawn.shape == (2, 3, 64, 64)
    assert drawn.abs().max() <= 1


def test_a_saved_folder_reproduces_its_images(trained, tmp_path):
    moved = tmp_path / "elsewhere"
    Path(trained.out, "model").rename(moved)
    first = images(moved)
    moved.rename(Path(trained.out, "model"))
    assert torch.equal(first, images(f"{trained.out}/model"))


def test_every_stage_logs_validates_draws_and_plots(trained):
    for stage in ("autoencoder", "clip", "denoiser", "classifier"):
        folder = Path(trained.out, "training", stage)
        lines = read(folder / "log.jsonl")
        assert {line["step"] for line in lines} == {1, 2, 3, 4}
        assert any(name.startswith("val_") for line in lines for name in line)
        assert (folder / "curves.png").stat().st_size > 0
        kind = "svg" if stage == "classifier" else "png"  # which draws a curve, not pictures
        assert (folder / "samples" / f"00000004.{kind}").stat().st_size > 0


def test_a_run_stopped_at_half_goes_on_to_the_same_weights(trained, tmp_path, tiny):
    whole = read_tensors(newest(Path(trained.out, "training", "autoencoder", "state")) / "weights.safetensors")
    common = [*tiny, f"out={tmp_path}", "train_autoencoder.decay=constant"]
    train_autoencoder(load(Run, None, [*common, "train_autoencoder.steps=2"]), CPU)
    train_autoencoder(load(Run, None, [*common, "train_autoencoder.steps=4"]), CPU)
    state = tmp_path / "training" / "autoencoder" / "state"
    stopped = read_tensors(newest(state) / "weights.safetensors")
    straight = tmp_path / "straight"
    train_autoencoder(load(Run, None, [*common, f"out={straight}"]), CPU)
    state = straight / "training" / "autoencoder" / "state"
    for key, value in read_tensors(newest(state) / "weights.safetensors").items():
        assert torch.equal(value, stopped[key]), key
    assert stopped.keys() == whole.keys()


def test_a_run_does_not_go_on_with_another_autoencoder(trained, tmp_path, tiny):
    shutil.copytree(trained.out, tmp_path / "run")
    overrides = [*tiny, f"out={tmp_path / 'run'}", "cache.use=never"]
    train_autoencoder(load(Run, None, [*overrides, f"out={tmp_path / 'other'}", "train_autoencoder.seed=1"]), CPU)
    shutil.rmtree(tmp_path / "run" / "autoencoder")
    shutil.copytree(tmp_path / "other" / "autoencoder", tmp_path / "run" / "autoencoder")
    with pytest.raises(ValueError, match=r"step-00000004 was made with another autoencoder \(.*or begin anew with"):
        train_ldm(load(Run, None, [*overrides, "train_ldm.steps=6"]), CPU)


@pytest.fixture
def shipped_stages(tiny) -> list[str]:
    """Overrides of a tiny run with the autoencoder and the text encoder of the shipped model."""
    return [override for override in tiny if not override.startswith(("autoencoder.", "text."))]


def test_a_missing_stage_is_taken_from_the_shipped_model_and_it_is_said(tmp_path, shipped_stages, capsys):
    train_ldm(load(Run, None, [*shipped_stages, f"out={tmp_path}", "train_ldm.steps=1"]), CPU)
    said = capsys.readouterr().out
    for stage in ("autoencoder", "text"):
        assert f"{tmp_path / stage} is not there: taking the shipped model's {stage}" in said


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_kind_of_first_stage_serves_a_denoiser(kind, trained, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("ldm.training.loop.draw_curves", lambda *_: None)  # takes longer than all else here
    shutil.copytree(Path(trained.out, "text"), tmp_path / "text")
    small = ["data.size=32", "data.length=16", "train_autoencoder.steps=2", "train_ldm.steps=2"]
    run = load(Run, None, [*tiny, *small, f"bottleneck={kind}", "cache.use=always", f"out={tmp_path}"])
    data, keys, exported = run.data.build("train"), [Key(0, i) for i in (5, 14, 2)], []
    image = torch.stack([data[key].image for key in keys])

    def save(network, *rest):
        exported.append(network.decode(network.encode(image)))
        save_autoencoder(network, *rest)

    monkeypatch.setattr("ldm.stages.autoencoder.save_autoencoder", save)
    train_autoencoder(run, CPU)
    train_ldm(run, CPU)
    autoencoder = load_model(tmp_path / "model").autoencoder
    assert type(autoencoder.bottleneck) is type(run.bottleneck.build(run.autoencoder.channels))
    latent = autoencoder.encode(image)
    cached = torch.stack([LatentDataset(tmp_path / "cache")[key].latent for key in keys]).float()
    torch.testing.assert_close(cached, latent, atol=5e-3, rtol=5e-3)
    error = (autoencoder.decode(latent) - exported[-1]).abs().mean() / exported[-1].std()
    assert error < 0.05  # in half precision another code may be the nearest, another number the largest
    one, other = images(tmp_path / "model")
    assert one.shape == (3, 32, 32) and one.isfinite().all() and not torch.equal(one, other)


@pytest.mark.parametrize("other", ["autoencoder.channels=5", "bottleneck=identity", "text.layers=4"])
def test_a_missing_stage_that_is_no_shipped_network_is_asked_for(tmp_path, shipped_stages, other):
    name = "text" if other.startswith("text") else "autoencoder"
    with pytest.raises(ValueError, match=rf"this run's {name} is not the shipped .* train it with scripts/"):
        train_ldm(load(Run, None, [*shipped_stages, other, f"out={tmp_path}"]), CPU)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train_ldm.batch=4", "another batch \\(8, now 4\\)"),
        ("train_ldm.seed=1", "another seed"),
        ("train_ldm.optimizer=adamw", "another optimizer \\(muon, now adamw\\)"),
        ("train_ldm.ema=0", "another average"),
        ("schedule.shift=1", "another schedule"),
        ("process.target=x0", "another process .*target='flow'.*now .*target='x0'"),
    ],
)
def test_a_run_does_not_go_on_with_what_would_not_be_the_same_run(trained, tiny, change, says):
    """Fault 16."""
    run = load(Run, None, [*tiny, "cache.use=always", f"out={trained.out}", "train_ldm.steps=6", change])
    with pytest.raises(ValueError, match=says):
        train_ldm(run, CPU)


def test_a_run_does_not_go_on_with_another_number_of_processes(trained, tiny, monkeypatch):
    """Fault 16."""
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    run = load(Run, None, [*tiny, f"out={trained.out}", "train_autoencoder.steps=6"])
    with pytest.raises(ValueError, match=r"another number of processes \(1, now 2\)"):
        train_autoencoder(run, CPU)


def test_a_run_does_not_go_on_with_the_other_norm(trained, tiny):
    """Both norms have the same weights, which would load."""
    run = load(Run, None, [*tiny, f"out={trained.out}", "train_autoencoder.steps=6", "autoencoder.norm=group"])
    with pytest.raises(ValueError, match=r"another norm \(channel, now group\)"):
        train_autoencoder(run, CPU)


def test_the_latents_have_zero_mean_and_with_the_posteriors_draws_unit_variance(trained):
    _, autoencoder, _ = frozen_stages(trained, CPU)
    (batch,) = first_batches(trained.data.build("train"), 64, 64)
    latent = autoencoder.encode(batch.image)
    spread = autoencoder.bottleneck.variance(autoencoder.encoder(batch.image)) / autoencoder.std.square()
    variance = latent.var(dim=(0, 2, 3)) + spread.mean(dim=(0, 2, 3))
    torch.testing.assert_close(latent.mean(dim=(0, 2, 3)), torch.zeros(latent.shape[1]), atol=0.02, rtol=0)
    torch.testing.assert_close(variance, torch.ones(latent.shape[1]), atol=0.02, rtol=0)


def test_a_cached_batch_equals_an_encoded_one(trained):
    run, autoencoder, text = frozen_stages(trained, CPU)
    data = run.data.build("train")
    cache = cache_latents(run, autoencoder, text, data)
    assert len(cache) == len(data)
    keys = [Key(0, i) for i in (5, 40, 2)]
    latents = cache.collate([cache[key] for key in keys])
    image = torch.stack([data[key].image for key in keys])
    cond = text([data[key].caption for key in keys])
    torch.testing.assert_close(latents.latent, autoencoder.encode(image), atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(latents.cond.tokens, cond.tokens * cond.mask[..., None], atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(latents.cond.pooled, cond.pooled, atol=5e-3, rtol=5e-3)
    assert torch.equal(latents.cond.mask, cond.mask)


def test_captions_are_cached_once(trained):
    from safetensors import safe_open

    run, *_ = frozen_stages(trained, CPU)
    captions = {run.data.build("train").scene(i)[1] for i in range(64)}
    with safe_open(f"{run.out}/cache/captions-00000.safetensors", framework="pt") as file:
        assert len(file.get_tensor("pooled")) == len(captions)


def test_a_cache_of_another_data_set_text_encoder_or_autoencoder_is_refused(trained):
    """Fault 34."""
    run, autoencoder, text = frozen_stages(trained, CPU)
    other = load(Run, None, ["data.seed=9", "data.length=64"]).data.build("train")
    with pytest.raises(StaleCache, match="data set"):
        cache_latents(run, autoencoder, text, other)
    changed = load_text(Path(run.out, "text"))
    next(changed.parameters()).data += 1
    with pytest.raises(StaleCache, match="text encoder"):
        cache_latents(run, autoencoder, changed, run.data.build("train"))
    autoencoder.mean += 1
    with pytest.raises(StaleCache, match="autoencoder"):
        cache_latents(run, autoencoder, text, run.data.build("train"))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_network_sees_captions_of_one_length_only(trained, monkeypatch, compiled):
    """For any other it would be compiled anew, which takes minutes."""
    task = task_of(train_ldm, replace(trained, train_ldm=replace(trained.train_ldm, compile=compiled)), monkeypatch)
    lengths = []

    def network(x, t, cond):
        lengths.append(cond.tokens.shape[1])
        return task.network(x, t, cond)

    for seed, batch in enumerate(islice(task.batches(0, 0, 1), 3)):
        task.loss(network, batch, seed, 0)
    longest = task.model.text.context_length
    assert len(lengths) == 3 and all((length == longest) is compiled for length in lengths)


def test_training_without_a_cache_works_too(shipped_stages, tmp_path):
    run = load(Run, None, [*shipped_stages, f"out={tmp_path}", "cache.use=never", "train_ldm.steps=1"])
    train_ldm(run, CPU)
    assert not (tmp_path / "cache").exists()
    assert (tmp_path / "model" / "denoiser.safetensors").exists()


def test_a_damaged_model_is_refused_and_the_file_is_named(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(f"{trained.out}/model", folder)
    path = folder / "denoiser.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenFile, match="denoiser.safetensors"):
        load_model(folder)


def test_a_torn_checkpoint_is_passed_over(trained, tmp_path):
    import shutil

    state = tmp_path / "state"
    shutil.copytree(Path(trained.out, "training", "clip", "state"), state)
    (state / "step-notes").mkdir()
    last = saved(state)[-1]
    (last / "weights.safetensors").write_bytes(b"torn")
    warnings = []
    assert newest(state, warn=warnings.append) == saved(state)[-2]
    assert "weights.safetensors" in warnings[0]


def test_the_model_of_the_best_score_is_kept_beside_the_last(trained, tmp_path, tiny, monkeypatch):
    scores = iter([0.5, 0.2])
    monkeypatch.setattr(DenoiserTask, "score", lambda task, network: next(scores))
    for stage in ("autoencoder", "text", "cache"):
        shutil.copytree(Path(trained.out, stage), tmp_path / stage)
    run = load(Run, None, [*tiny, "cache.use=always", f"out={tmp_path}", "train_ldm.score_every=2"])
    train_ldm(run, CPU)
    assert [line["score"] for line in read(tmp_path / "training/denoiser/log.jsonl") if "score" in line] == [0.5, 0.2]
    averages = tmp_path / "training/denoiser/state/step-00000002/ema.safetensors"
    best = load_model(tmp_path / "model-best").denoiser.state_dict()
    then = {key.removeprefix("module."): value for key, value in read_tensors(averages).items()}
    for key, value in best.items():
        torch.testing.assert_close(value, then[key].half().float())
    last = load_model(tmp_path / "model").denoiser.state_dict()
    assert any(not torch.equal(value, last[key]) for key, value in best.items())


def test_of_pictures_without_a_benchmark_the_model_of_the_lowest_held_out_loss_is_kept(tmp_path, tiny, capsys):
    data = ["data.name=folder", "data.path=data/sample", "data.size=16", "data.flip=true", "data.val_share=0.2"]
    own = [setting for setting in tiny if not setting.startswith("data.")]
    run = load(Run, None, [*own, *data, f"out={tmp_path}"])
    train_autoencoder(run, CPU)
    train_clip(run, CPU)
    train = ["train_ldm.score_every=2", "train_ldm.validate_every=2"]
    train_ldm(load(Run, None, [*own, *data, f"out={tmp_path}", *train]), CPU)
    said = capsys.readouterr().out
    assert "model-best is the model of the lowest held-out loss" in said and "no latent cache: flipped" in said
    log = read(tmp_path / "training/denoiser/log.jsonl")
    losses = [line["val_loss"] for line in log if "val_loss" in line]
    assert len(losses) > 1 and [line["score"] for line in log if "score" in line] == [-loss for loss in losses]
    best = 2 * (1 + min(range(len(losses)), key=lambda i: (losses[i], -i)))
    averages = tmp_path / f"training/denoiser/state/step-{best:08d}/ema.safetensors"
    kept = load_model(tmp_path / "model-best").denoiser.state_dict()
    then = {key.removeprefix("module."): value for key, value in read_tensors(averages).items()}
    assert all(torch.equal(value, then[key].half().float()) for key, value in kept.items())


def test_the_configuration_of_ones_own_pictures_keeps_its_best_model():
    """As its own words and the README say; what a file names of a section begins from 0."""
    run = load(Run, Path(__file__).parents[2] / "configs" / "folder256.yaml")
    assert run.train_ldm.score_every and run.train_ldm.steps % run.train_ldm.score_every == 0


def test_a_resumed_run_remembers_its_best_score(trained, tmp_path, tiny, monkeypatch, capsys):
    for stage in ("autoencoder", "text", "cache"):
        shutil.copytree(Path(trained.out, stage), tmp_path / stage)
    common = [*tiny, "cache.use=always", f"out={tmp_path}", "train_ldm.score_every=2", "train_ldm.decay=constant"]
    monkeypatch.setattr(DenoiserTask, "score", lambda task, network: 0.5)
    train_ldm(load(Run, None, [*common, "train_ldm.steps=2"]), CPU)
    kept = (tmp_path / "model-best/denoiser.safetensors").read_bytes()
    monkeypatch.setattr(DenoiserTask, "score", lambda task, network: 0.4)
    assert "best score" not in capsys.readouterr().err
    train_ldm(load(Run, None, common), CPU)
    assert ", best score 0.50" in capsys.readouterr().err
    assert (tmp_path / "model-best/denoiser.safetensors").read_bytes() == kept


def test_a_best_model_whose_export_was_broken_off_does_not_count(tmp_path):
    """A next start takes the best score from the log: there must be a model of it."""
    task, log = LineTask(), Log(tmp_path / "log.jsonl", 0)
    looks = Looks(task, TrainConfig(), tmp_path, lambda figures: log.write(1, **figures))
    task.score = lambda network: 0.5

    def broken_off(network, best=False):
        raise KeyboardInterrupt

    task.export = broken_off
    with pytest.raises(KeyboardInterrupt):
        looks._score(task.network, 1, print)
    assert Looks(task, TrainConfig(), tmp_path, print).best == -inf


def test_a_score_looks_at_prompts_that_the_runs_own_pictures_can_fulfil(tiny):
    config = ["train_ldm.score_every=2", "train_ldm.score_prompts=50"]
    every = scored_prompts(load(Run, None, [*tiny, *config]))
    assert {prompt.category for prompt in every} == {*CATEGORIES}
    one = scored_prompts(load(Run, None, [*tiny, *config, "data.max_objects=1", "data.sizes=[large]"]))
    assert one and all(len(prompt.statement.things) * prompt.statement.count == 1 for prompt in one)
    assert not any("small" in prompt.text for prompt in one)
    assert scored_prompts(load(Run, None, tiny)) == []
    assert scored_prompts(load(Run, None, [*config, "data=folder", "data.path=data/sample"])) == []


def test_a_classifier_steers_and_is_refused_by_a_model_of_other_latents_or_levels(trained, tmp_path):
    folder = Path(trained.out, "classifier")
    model = load_model(Path(trained.out, "model"))
    classifier = load_classifier(folder, model)
    steered = images(f"{trained.out}/model", steer=by_classifier(classifier, 30.0))
    assert not torch.allclose(steered, images(f"{trained.out}/model"), atol=1e-3)
    other = load_model(Path(trained.out, "model"))
    other.process = replace(other.process, schedule=SCHEDULES["linear"]().build())
    with pytest.raises(ValueError, match="another noise schedule"):
        load_classifier(folder, other)
    with pytest.raises(ValueError, match="the worse model was trained on another noise schedule"):
        by_worse_model(model, other, 2.0)
    with torch.no_grad():
        model.autoencoder.mean += 1
    with pytest.raises(ValueError, match="latents of another autoencoder"):
        load_classifier(folder, model)


def test_a_classifiers_losses_lie_near_those_of_one_who_guesses_at_first(trained):
    lines = read(Path(trained.out, "training", "classifier", "log.jsonl"))
    last = [line for line in lines if "val_loss" in line][-1]
    assert 0 < last["val_loss_blind"] < 0.7 and 0 < last["val_loss"] < 1


def test_further_prompts_draw_by_their_weights_and_a_negative_one_that_the_prompt_says_does_not(trained):
    model = load_model(Path(trained.out, "model"))

    def drawn(steer=None, prompts=("a red star", "a ring")):
        return torch.cat([image for image, _ in model([*prompts], seed=3, steer=steer)])

    model.sampling = model.sampling.but("guidance.scale=300")  # a network that has learned next to nothing
    plain, cross = drawn(), drawn(prompts=["a cross"])
    assert not torch.allclose(cross, plain[:1], atol=1e-2)
    moved = drawn(towards(model, [(300.0, "a cross"), (-300.0, "a red star")]), ["a red star"])
    torch.testing.assert_close(moved, cross, atol=1e-3, rtol=0)
    same = drawn(away_from(model, "a red star", 300.0))
    torch.testing.assert_close(same[:1], plain[:1], atol=1e-3, rtol=0)
    assert not torch.allclose(same[1:], plain[1:], atol=1e-2)


def test_a_learned_variance_is_trained_saved_and_drawn_with(trained, tmp_path, tiny):
    for stage in ("autoencoder", "text", "cache"):
        shutil.copytree(Path(trained.out, stage), tmp_path / stage)
    asked = ["process.learned_variance=true", "sampler=ddpm", "sampler.variance=learned"]
    with pytest.raises(ValueError, match="wants steps drawn evenly .* set times=uniform"):
        train_ldm(load(Run, None, [*tiny, *asked, f"out={tmp_path}"]), CPU)
    asked.append("times=uniform")
    train_ldm(load(Run, None, [*tiny, *asked, "cache.use=always", f"out={tmp_path}"]), CPU)
    model = load_model(tmp_path / "model")
    assert model.sampling.sampler == SAMPLERS["ddpm"](variance="learned")
    said = model.process.denoiser(model.denoiser, model.condition(["a ring"]))
    x, level = torch.randn(1, model.autoencoder.channels, 8, 8), model.process.schedule.level(0.5)
    assert said(x, level).variance.abs().max() > 0, "the bound has not trained it"
    learned, *others = (
        next(model(["a ring"], sampling=model.sampling.but(f"sampler.variance={variance}")))[0]
        for variance in ("learned", "posterior", "beta")
    )
    assert learned.isfinite().all() and not any(torch.allclose(learned, other, atol=1e-3) for other in others)


def test_a_model_steers_away_from_a_worse_one(trained):
    model = load_model(Path(trained.out, "model"))
    plain = images(f"{trained.out}/model")
    assert torch.equal(plain, images(f"{trained.out}/model", steer=by_worse_model(model, model, 1.0)))
    assert not torch.allclose(plain, images(f"{trained.out}/model", steer=by_worse_model(model, model, 3.0)), atol=1e-6)


def test_a_run_with_a_base_model_starts_from_its_denoiser_and_takes_its_other_parts(trained, tmp_path, tiny, capsys):
    base = Path(trained.out, "model")
    run = load(Run, None, [*tiny, f"base={base}", f"out={tmp_path}", "train_ldm.steps=1", "train_ldm.lr=1e-12"])
    train_ldm(run, CPU)
    said, warned = capsys.readouterr()
    assert f"the denoiser starts from {base}" in said and f"taking {base}'s autoencoder" in said
    assert "warning" not in warned
    for part in ("denoiser.safetensors", "text/text.safetensors", "autoencoder/autoencoder.safetensors"):
        before, after = read_tensors(base / part), read_tensors(tmp_path / "model" / part)
        for key, value in before.items():
            torch.testing.assert_close(after[key], value, atol=1e-5, rtol=1e-3)


def test_a_base_of_another_target_or_schedule_is_warned_of_with_the_settings_that_keep_it(
    trained, tmp_path, tiny, capsys
):
    base = Path(trained.out, "model")
    own = f"process.target={trained.process.target} schedule.name=flow schedule.shift={trained.schedule.shift}"
    for other in (["process.target=x0"], ["schedule=cosine"], [f"schedule.shift={2 * trained.schedule.shift}"]):
        out = f"out={tmp_path / other[0]}"
        train_ldm(load(Run, None, [*tiny, f"base={base}", out, "train_ldm.steps=1", *other]), CPU)
        assert f"warning: base {base} has another target, schedule or condition" in (said := capsys.readouterr().err)
        assert all(setting in said for setting in own.split())


@pytest.mark.parametrize(("stage", "train"), [("autoencoder", train_autoencoder), ("denoiser", train_ldm)])
def test_a_base_is_started_from_where_no_whole_checkpoint_is_left(stage, train, trained, tmp_path, tiny, capsys):
    """Faults 13 and 14: not from chance."""
    (tmp_path / "training" / stage / "state" / "step-00000500").mkdir(parents=True)
    train(load(Run, None, [*tiny, f"base={trained.out}/model", f"out={tmp_path}", f"{train.__name__}.steps=1"]), CPU)
    said, warned = capsys.readouterr()
    assert f"the {stage} starts from {trained.out}/model" in said
    assert (said + warned).count("checkpoint step-00000500 is passed over") == 1


@pytest.mark.parametrize(("train", "size", "factor"), [(train_autoencoder, 50, 4), (train_ldm, 36, 16)])
def test_pictures_that_do_not_fit_the_networks_are_refused_before_anything_is_made_of_them(
    train, size, factor, tmp_path
):
    """With the default networks; ``size`` fits the first stage in the second case."""
    multiple = f"data.size {size} is not a multiple of {factor}, .*; try data.size={size // factor * factor}"
    data = ["data.name=folder", "data.path=data/sample", f"data.size={size}", f"out={tmp_path}"]
    with pytest.raises(ValueError, match=multiple):
        train(load(Run, None, [*data, f"base={shipped_model()}"] if train is train_ldm else data), CPU)
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_starts_from_that_of_the_base_model(trained, tmp_path, tiny, capsys):
    start = [*tiny, f"base={trained.out}/model", f"out={tmp_path}", "train_autoencoder.steps=1"]
    train_autoencoder(load(Run, None, [*start, "train_autoencoder.lr=1e-12"]), CPU)
    assert f"the autoencoder starts from {trained.out}/model" in capsys.readouterr().out
    before = read_tensors(Path(trained.out, "model/autoencoder/autoencoder.safetensors"))
    after = read_tensors(tmp_path / "autoencoder/autoencoder.safetensors")
    for key, value in before.items():
        if key not in ("mean", "std"):  # which are measured anew
            torch.testing.assert_close(after[key], value, atol=1e-5, rtol=1e-3)
    with pytest.raises(ValueError, match=r"autoencoder of other settings; use its own \(autoencoder.norm=channel\)"):
        train_autoencoder(load(Run, None, [*start, f"out={tmp_path / 'other'}", "autoencoder.norm=group"]), CPU)


@pytest.mark.parametrize("folder", ["model", "model-best"])
def test_a_folder_of_somebody_else_is_refused_before_anything_is_trained(tiny, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "notes.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match=rf"{folder} holds files that this program did not write"):
        train_ldm(load(Run, None, [*tiny, f"out={tmp_path}", "train_ldm.score_every=2"]), CPU)
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_a_model_of_somebody_else_is_refused_before_a_decoder_is_trained(trained, tiny, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match="model holds files that this program did not write"):
        train_autoencoder(load(Run, None, [*tiny, f"out={tmp_path}", f"base={trained.out}", "decoder_only=true"]), CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_base_model_of_another_shape_is_refused(trained, tmp_path, tiny):
    """Fault 9."""
    run = load(Run, None, [*tiny, f"base={trained.out}/model", f"out={tmp_path}", "denoiser.depth=2"])
    with pytest.raises(ValueError, match=r"has another denoiser than this run asks for; its own: denoiser\.depth=1$"):
        train_ldm(run, CPU)


def test_a_damaged_denoiser_of_a_base_model_is_named(trained, tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(Path(trained.out, "model"), base)
    file = base / "denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="denoiser.safetensors"):
        train_ldm(load(Run, None, [*tiny, f"base={base}", f"out={tmp_path / 'run'}"]), CPU)


def test_a_base_model_of_other_latents_is_refused(trained, tmp_path, tiny):
    other = load(Run, None, [*tiny, f"out={tmp_path}", f"base={trained.out}/model"])
    train_autoencoder(other, CPU)
    with pytest.raises(ValueError, match="has another autoencoder: its denoiser knows other latents"):
        train_ldm(other, CPU)


def test_a_resumed_run_needs_its_base_no_more(trained, tmp_path, tiny):
    base = tmp_path / "base"
    shutil.copytree(Path(trained.out, "model"), base)
    for stage in ("autoencoder", "text", "cache"):
        shutil.copytree(Path(trained.out, stage), tmp_path / "run" / stage)
    common = [*tiny, "cache.use=always", f"base={base}", f"out={tmp_path / 'run'}"]
    train_ldm(load(Run, None, [*common, "train_ldm.steps=2"]), CPU)
    shutil.rmtree(base)
    train_ldm(load(Run, None, common), CPU)


def test_the_prompts_that_choose_the_best_model_are_not_those_of_the_benchmark(tiny):
    config = ["train_ldm.score_every=2", "train_ldm.score_prompts=500"]
    chosen, judged = scored_prompts(load(Run, None, [*tiny, *config])), prompt_set(50)
    full = [{prompt.text for prompt in prompts if prompt.category == "full"} for prompts in (chosen, judged)]
    assert len(full[0]) == len(full[1]) == 50 and not full[0] & full[1]  # of few words there are but few prompts


def test_a_decoder_trained_alone_keeps_the_latents_to_the_last_bit_and_so_their_denoisers(trained, tiny, tmp_path):
    out = tmp_path / "run"
    settings = [*tiny, f"out={out}", f"base={trained.out}/model", "decoder_only=true"]
    train_autoencoder(load(Run, None, settings), CPU)
    before, after = (load_autoencoder(Path(folder, "autoencoder"))[0] for folder in (trained.out, out))
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(before.encode(image), after.encode(image))
    assert not torch.equal(before.decode(before.encode(image)), after.decode(after.encode(image)))
    shutil.copytree(Path(trained.out, "cache"), out / "cache")
    shutil.copytree(Path(trained.out, "text"), out / "text")
    train_ldm(load(Run, None, [*settings, "cache.use=always"]), CPU)  # neither cache nor base is refused


def test_a_model_with_a_decoder_trained_alone_is_the_base_but_for_it(trained, tiny, tmp_path):
    out, base = tmp_path / "run", Path(trained.out, "model")
    small = ["autoencoder.decoder_width=4", "autoencoder.decoder_blocks=1"]
    settings = [*tiny, f"out={out}", f"base={base}", "sample.steps=7"]
    train_autoencoder(load(Run, None, [*settings, *small, "decoder_only=true"]), CPU)
    before, after = load_model(base), load_model(out / "model")
    sizes = [sum(weight.numel() for weight in model.autoencoder.decoder.parameters()) for model in (before, after)]
    assert sizes[1] < sizes[0] / 2
    assert after.sampling == before.sampling
    for part in ("denoiser", "text"):
        ours, theirs = (list(getattr(model, part).parameters()) for model in (after, before))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    latent = before.autoencoder.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert torch.equal(after.autoencoder.decode(latent), load_autoencoder(out / "autoencoder")[0].decode(latent))
    train_autoencoder(load(Run, None, [*settings, *small, "decoder_only=true", "train_autoencoder.steps=6"]), CPU)
    again = load_model(out / "model").autoencoder.decode(latent)
    assert torch.equal(again, load_autoencoder(out / "autoencoder")[0].decode(latent))
    assert not torch.equal(again, after.autoencoder.decode(latent))
    train_ldm(load(Run, None, [*settings, f"out={tmp_path / 'further'}", f"base={out / 'model'}"]), CPU)  # not refused
    assert load_model(tmp_path / "further" / "model").autoencoder.decoder[0].out_channels == 4


def test_a_dry_run_of_a_decoder_counts_the_model_that_it_will_be_part_of(trained, tiny, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr("ldm.stages.stage.preflight", lambda *given: counted.append(given[-1]))
    base = Path(trained.out, "model")
    for of in (base, trained.out):  # the latter is no model
        run = load(Run, None, [*tiny, f"out={tmp_path / 'run'}", f"base={of}", "decoder_only=true"])
        train_autoencoder(run, CPU, Start(scratch=tmp_path))
    assert counted == [sum(path.stat().st_size for path in base.rglob("*") if path.is_file()), 0]


def test_a_denoiser_goes_on_after_its_decoder_became_another(trained, tiny, tmp_path):
    out, settings = tmp_path / "run", [*tiny, f"base={trained.out}/model"]
    shutil.copytree(Path(trained.out, "autoencoder"), out / "autoencoder")
    train_ldm(load(Run, None, [*settings, f"out={out}", "train_ldm.steps=1"]), CPU)
    small = [*settings, f"out={tmp_path / 'small'}", "decoder_only=true", "autoencoder.decoder_width=4"]
    shutil.rmtree(out / "autoencoder")
    shutil.copytree(train_autoencoder(load(Run, None, small), CPU), out / "autoencoder")
    train_ldm(load(Run, None, [*settings, f"out={out}"]), CPU)
    with pytest.raises(ValueError, match="was trained with autoencoder.decoder_width=4, .* asks for .*decoder_width=6"):
        train_ldm(load(Run, None, [*settings, f"out={out}", "autoencoder.decoder_width=6"]), CPU)


def test_a_decoder_of_the_size_that_it_has_keeps_its_weights(trained, tiny, tmp_path, capsys):
    width = load(Run, None, tiny).autoencoder.width
    settings = [*tiny, f"out={tmp_path}", f"base={trained.out}/model", f"autoencoder.decoder_width={width}"]
    train_autoencoder(load(Run, None, [*settings, "decoder_only=true"]), CPU)
    assert "begins anew" not in capsys.readouterr().out
    train_autoencoder(load(Run, None, [*settings, f"out={tmp_path / 'whole'}"]), CPU)


@pytest.mark.parametrize("name", ["base", "other"])
def test_a_model_is_not_replaced_by_another_with_a_new_decoder(trained, tiny, tmp_path, name):
    """Neither the base itself, whose decoder would be lost, nor what was trained further."""
    model = tmp_path / "model"
    shutil.copytree(Path(trained.out, "model"), model)
    settings = [*tiny, f"out={tmp_path}"]
    base = (
        model if name == "base" else train_ldm(load(Run, None, [*tiny, f"out={tmp_path / 'b'}", f"base={model}"]), CPU)
    )
    before = digest(model)
    with pytest.raises(ValueError, match=f"{model} is there, and {base} with a new decoder would take its place"):
        train_autoencoder(load(Run, None, [*settings, f"base={base}", "decoder_only=true"]), CPU)
    assert digest(model) == before and not (tmp_path / "autoencoder").exists()


def test_a_base_without_a_denoiser_gives_a_decoder_and_no_model(trained, tiny, tmp_path, capsys):
    settings = [*tiny, f"out={tmp_path}", f"base={trained.out}", "decoder_only=true"]
    train_autoencoder(load(Run, None, settings), CPU)
    assert f"{trained.out} is no whole model" in capsys.readouterr().out
    assert (tmp_path / "autoencoder").is_dir() and not (tmp_path / "model").exists()


def test_another_decoder_is_refused_unless_it_alone_is_trained_and_differs(trained, tiny, tmp_path):
    settings = [*tiny, f"out={tmp_path}", f"base={trained.out}/model", "autoencoder.decoder_width=4"]
    with pytest.raises(ValueError, match="has an autoencoder of other settings"):
        train_autoencoder(load(Run, None, settings), CPU)
    with pytest.raises(ValueError, match="has an autoencoder of other settings"):
        train_autoencoder(load(Run, None, [*settings, "decoder_only=true", "bottleneck=vq"]), CPU)


def test_a_decoder_cannot_be_trained_alone_without_the_encoder_that_it_is_for():
    with pytest.raises(ValueError, match="decoder_only needs a base.*base=MODEL"):
        load(Run, None, ["decoder_only=true"])


def test_a_price_on_the_encoder_is_refused_where_it_is_kept():
    run = load(Run, None, ["decoder_only=true", "base=MODEL", "robustness.contractive=0.1"])  # as a saved one
    with pytest.raises(ValueError, match="robustness.contractive 0.1 is a price on the encoder.*set it to 0"):
        train_autoencoder(run, CPU)
