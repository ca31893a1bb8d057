"""A cascade: small pictures drawn again, large; each image of its own seed, whatever the batch and the model before."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calls import assert_one_line, call
from conftest import UNET
from PIL import Image

from ldm.cascade import Enlarger
from ldm.config import load
from ldm.data.hints import HINTS
from ldm.data.transforms import read_image, to_bytes, to_tensor
from ldm.denoisers.control import ControlConfig
from ldm.files import read_tensors
from ldm.folders import load_model
from ldm.metadata import read_settings
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.samplers import ImageNoise
from ldm.stages import train_control, train_ldm
from ldm.training.control import ControlTask
from ldm.training.optim import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A tiny model, and ControlNets of it that enlarge: with noise, and without."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    made = load(Run, None, [*UNET, f"out={folder}", "control.hint=half", "control.noise_level=0.5"])
    train_ldm(made, CPU)
    train_control(made, CPU)
    without = ["control.hint=quarter", f"base={folder}/model", f"out={folder}/without"]
    train_control(load(Run, None, [*UNET, *without]), CPU)
    return folder


@pytest.fixture
def enlarger(out):
    """One whose ControlNet says something: after a few steps it would hardly."""
    made = Enlarger.load(out / "control", load_model(out / "model"), 0.2)
    torch.manual_seed(0)
    for conv in made.control.zero_convs:
        torch.nn.init.normal_(conv.weight, std=0.3)
    torch.nn.init.normal_(made.control.hint_encoder[-1].weight, std=0.3)
    return made


def small(enlarger, count=3):
    """Pictures as a model before would give them: their seeds count up."""
    height, width = (side // enlarger.factor for side in enlarger.model.size)
    torch.manual_seed(1)
    return [(torch.rand(1, 3, height, width) * 2 - 1, 5 + i) for i in range(count)]


def test_an_image_has_its_seed_and_does_not_depend_on_its_batch(enlarger):
    prompts, pictures = ["a red star", "a blue ring", ""], small(enlarger)
    drawn = {}
    for batch in (1, 2, 3):
        enlarger.model.sampling = enlarger.model.sampling.but(f"sample.batch={batch}")
        drawn[batch] = [*enlarger(iter(pictures), prompts)]
    assert [seed for _, seed in drawn[2]] == [5, 6, 7]
    for one, two, three in zip(*drawn.values(), strict=True):
        assert one[0].shape == (1, 3, *enlarger.model.size)
        torch.testing.assert_close(one[0], two[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one[0], three[0], atol=1e-4, rtol=1e-4)


def test_guidance_tells_each_of_a_batch_its_own_picture_with_every_prompt(enlarger):
    """Two rows for each picture at a guided level; with another's picture an image would be another."""
    enlarger.model.sampling = enlarger.model.sampling.but("guidance.scale=3", "guidance.interval=[0,1]")
    first, *others = small(enlarger)
    [alone] = enlarger([first], ["a star"])
    [beside, *_] = enlarger([first, *others], ["a star", "a ring", "a heart"])
    torch.testing.assert_close(alone[0], beside[0], atol=1e-4, rtol=1e-4)
    [swapped] = enlarger([(others[0][0], first[1])], ["a star"])
    assert not torch.allclose(alone[0], swapped[0], atol=1e-2)


def test_the_noises_of_both_models_and_of_the_hint_are_independent(enlarger, monkeypatch):
    """Each from a seed of its own: noise that is the same thrice would be there to be copied."""
    (picture, seed), *_ = small(enlarger)
    seeds, plain = [], TextToImage.__call__

    def noted(model, prompts, **how):
        seeds.append(how["seed"])
        return plain(model, prompts, **how)

    monkeypatch.setattr(TextToImage, "__call__", noted)
    [*_] = enlarger([(picture, seed)], ["a star"])
    enlarger.noise_level = enlarger.config.noise_level
    shown = enlarger.shown(torch.zeros_like(picture), [seed])[:, :3, :: enlarger.factor, :: enlarger.factor]
    shape = tuple(picture.shape[1:])
    draws = [shown / enlarger.noise_level, *(ImageNoise([own], shape)() for own in (seed, *seeds))]
    assert draws[0].std().item() == pytest.approx(1, abs=0.1)
    between = torch.corrcoef(torch.stack([draw.flatten() for draw in draws]))
    assert (between - torch.eye(3)).abs().max() < 0.1


def test_what_is_shown_is_the_picture_with_as_much_noise_as_is_told(enlarger):
    (picture, seed), *_ = small(enlarger)
    for noise in (0.0, 0.5):
        enlarger.noise_level = noise
        shown = enlarger.shown(picture, [seed])
        assert shown.shape == (1, 4, *enlarger.model.size)
        assert (shown[:, 3] == noise).all()
        back = HINTS["half"].of(shown[:, :3])
        assert (back - (1 - noise**2) ** 0.5 * picture).std().item() == pytest.approx(noise, rel=0.1)


def test_half_of_the_noise_that_was_learned_is_usual_and_more_is_refused(out):
    model = load_model(out / "model")
    assert Enlarger.load(out / "control", model).noise_level == 0.25
    assert Enlarger.load(out / "without" / "control", model).noise_level == 0
    for folder, most in ((out / "control", "0.5"), (out / "without" / "control", "0")):
        with pytest.raises(ValueError, match=f"noise level 0.6 .* has learned from 0 to {most}"):
            Enlarger.load(folder, model, 0.6)


def test_what_follows_edges_enlarges_nothing(enlarger):
    config = replace(enlarger.config, hint="edges")
    with pytest.raises(ValueError, match="a ControlNet of edges enlarges nothing; give one of half, quarter, coarse"):
        Enlarger(enlarger.model, enlarger.control, config)


@pytest.mark.parametrize(
    ("folder", "hint", "noise_level"), [("", "half", 0.4), ("", "half", 0.0), ("without", "quarter", 0.5)]
)
def test_a_run_does_not_go_on_with_other_noise(out, folder, hint, noise_level):
    changed = [f"control.hint={hint}", f"control.noise_level={noise_level}", "train_control.steps=5"]
    with pytest.raises(ValueError, match="another hint"):
        train_control(load(Run, None, [*UNET, f"base={out}/model", f"out={out / folder}", *changed]), CPU)


def test_a_resumed_training_with_noise_is_the_one_that_was_not_broken_off(out, tmp_path):
    common = [*UNET, "control.hint=half", "control.noise_level=0.5", f"base={out}/model", f"out={tmp_path}"]
    for steps in (2, 4):
        train_control(load(Run, None, [*common, f"train_control.steps={steps}"]), CPU)
    held = [read_tensors(folder / "control" / "control.safetensors") for folder in (out, tmp_path)]
    assert all(torch.equal(value, held[1][key]) for key, value in held[0].items())


def test_in_training_each_picture_has_noise_of_its_own_up_to_the_most(enlarger):
    model, control, objective = enlarger.model, ControlConfig("half", 0.5), SimpleNamespace(learned=torch.nn.Module())
    task = ControlTask(model, enlarger.control, objective, control, [], [], TrainConfig(), None, text_dropout=0)
    hints = task._hints(torch.zeros(200, 3, 16, 16), torch.Generator().manual_seed(0))
    told = hints[:, 3, 0, 0]
    assert told.min() < 0.05 and 0.45 < told.max() <= 0.5 and len(told.unique()) == 200
    torch.testing.assert_close(hints[:, :3].flatten(1).std(dim=1), told, rtol=0.25, atol=0.01)


def test_two_enlargers_of_a_cascade_draw_noise_of_their_own(enlarger):
    (picture, seed), *_ = small(enlarger)
    second = replace(enlarger, place=2)
    enlarger.noise_level = second.noise_level = 0.5
    one, two = (each.shown(torch.zeros_like(picture), [seed])[:, :3] for each in (enlarger, second))
    assert abs((one * two).mean()) < 0.05 * one.square().mean()
    with pytest.raises(ValueError, match="place 8 in a cascade is not one of 1 to 7"):
        replace(enlarger, place=8)


def test_pictures_and_prompts_are_as_many(enlarger):
    enlarger.model.sampling = enlarger.model.sampling.but("sample.batch=2")
    for prompts, says in (
        (["a star"], "more pictures than the 1 prompts"),
        (5 * ["a star"], "3 pictures for 5 prompts"),
    ):
        with pytest.raises(ValueError, match=says):
            [*enlarger(small(enlarger), prompts)]


def test_a_model_that_goes_by_way_of_clips_embedding_enlarges_nothing(enlarger):
    model = replace(enlarger.model, unclip="some")
    with pytest.raises(ValueError, match=r"give one that goes without CLIP's embedding"):
        replace(enlarger, model=model)


def test_txt2img_draws_what_the_enlarger_makes_of_what_it_draws_without(out, tmp_path):
    model = load_model(out / "model")
    height, width = model.size
    common = ("--prompt", "a red star", "a ring", "--ckpt", out / "model", "--H", height // 2, "--W", width // 2)
    larger = ("--enlarger", out / "control", "--enlarger-ckpt", out / "model", "--enlarger-set", "sample.steps=3")
    assert call("txt2img.py", *common, "--seed", 4, "--outdir", tmp_path / "small")[0] == 0
    status, printed, errors = call("txt2img.py", *common, *larger, "--seed", 4, "--grid", "--outdir", tmp_path)
    assert status == 0, errors
    assert "2 images" in printed
    model.sampling = model.sampling.but("sample.steps=3")
    given = [(to_tensor(read_image(tmp_path / "small" / f"0000{i}.png"))[None], 4 + i) for i in (0, 1)]
    wanted = [to_bytes(image)[0] for image, _ in Enlarger.load(out / "control", model)(given, ["a red star", "a ring"])]
    for i, picture in enumerate(wanted):
        drawn = np.asarray(Image.open(tmp_path / f"0000{i}.png"))
        assert drawn.shape == (height, width, 3)
        assert np.abs(drawn.astype(int) - picture).mean() < 3  # the small ones were rounded to bytes
    settings = read_settings(tmp_path / "00000.png")
    assert settings.enlarger.startswith(f"{out.name}/control (") and settings.enlarger.endswith(
        "noise level 0.25, sample.steps=3"
    )
    assert (settings.height, settings.factor) == (height // 2, 2) and f"Size: {width}x{height}" in settings.parameters()

    again = ("--from-image", tmp_path / "00001.png", "--ckpt", out / "model", "--outdir", tmp_path / "again")
    status, _, errors = call("txt2img.py", *again, *larger)
    assert status == 0 and "note" not in errors
    same = [np.asarray(Image.open(file)) for file in (tmp_path / "00001.png", tmp_path / "again" / "00000.png")]
    assert np.abs(same[0].astype(int) - same[1]).max() <= 1
    _, _, errors = call("txt2img.py", *again)
    assert "note: the image was enlarged by" in errors


def test_edit_enlarges_a_picture_as_the_enlarger_does(out, tmp_path):
    model = load_model(out / "model")
    height, width = model.size
    picture, results = tmp_path / "small.png", []
    colours = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    Image.fromarray(colours).save(picture)
    common = ("--image", picture, "--prompt", "a star", "--ckpt", out / "model", "--control", out / "control")
    for number, options in enumerate((("--seed", 4, "--n_samples", 2), ("--seed", 5, "--n_samples", 1))):
        file = tmp_path / f"{number}.png"
        status, printed, errors = call("edit.py", "enlarge", *common, *options, "--out", file)
        assert status == 0, errors
        assert "what was enlarged differs in the results by" in printed
        results.append(np.asarray(Image.open(file)))
    assert results[0].shape == (height + 4, (width + 2) * 3 + 2, 3)
    assert np.abs(results[0][:, -width - 2 :].astype(int) - results[1][:, -width - 2 :]).max() <= 1  # both of seed 5
    (wanted, _), *_ = Enlarger.load(out / "control", model)([(to_tensor(colours)[None], 5)], ["a star"])
    assert np.abs(results[1][2:-2, -width - 2 : -2].astype(int) - to_bytes(wanted)[0]).max() <= 1
    assert_one_line(
        call("edit.py", "enlarge", *common, "--noise-level", 0.7, "--out", file), "has learned from 0 to 0.5"
    )


def test_a_picture_is_traced_by_a_control_net_that_knows_noise(out, tmp_path):
    picture, file = tmp_path / "red.png", tmp_path / "out.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    for more in ((), ("--drawn",)):
        common = ("--image", picture, "--prompt", "a star", "--ckpt", out / "model", "--n_samples", 1, "--out", file)
        status, printed, errors = call("edit.py", "trace", "--control", out / "control", *common, *more)
        assert status == 0, errors
        assert "what was to be followed (half) differs" in printed


def test_a_size_that_does_not_fit_is_told_of_the_small_picture(enlarger):
    with pytest.raises(ValueError, match=r"a picture of 32 x 33, 2 times as large: height 66 is not a multiple"):
        enlarger.size((33, 32))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--enlarger-noise-level", 0.1),
            "--enlarger-noise-level 0.1 is of --enlarger, which is not given; give both, or none",
        ),
        (("--enlarger-set", "sample.steps=2"), "--enlarger-set sample.steps=2 is of --enlarger, which is not given"),
        (("--enlarger-ckpt", "somewhere"), "--enlarger-ckpt somewhere is of --enlarger, which is not given"),
        (
            ("--enlarger", "{out}/control", "--enlarger-ckpt", "{out}/model", "--enlarger-noise-level", 2),
            "noise level 2.0 on what",
        ),
        (("--enlarger", "{out}/nothing", "--enlarger-ckpt", "{out}/model"), "{out}/nothing"),
    ],
)
def test_txt2img_refuses_what_it_cannot_do(out, tmp_path, options, says):
    given = [str(option).format(out=out) for option in options]
    common = ("--prompt", "a star", "--ckpt", out / "model", "--outdir", tmp_path / "drawn")
    assert_one_line(call("txt2img.py", *common, *given), says.format(out=out))
    assert not Path(tmp_path / "drawn").exists()
