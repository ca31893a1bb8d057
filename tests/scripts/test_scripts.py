"""The scripts as a user calls them: the whole chain, the options of txt2img.py, mistakes, and a run that is stopped."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from calls import SCRIPTS, assert_one_line, call
from conftest import TINY
from PIL import Image
from torchvision.models import AlexNet_Weights, alexnet

from ldm.cli import device_of, read_lines
from ldm.config import from_dict, load
from ldm.data.loader import first_batches
from ldm.data.scene import TRAINED
from ldm.data.transforms import to_bytes
from ldm.diffusion.learned import ListedConfig
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import true_pictures
from ldm.evaluation.evaluation import Drawer
from ldm.evaluation.likelihood import BOUND_STEPS
from ldm.evaluation.prompts import CATEGORIES, SEED, TRAINING_SEED, prompt_set, read_prompts
from ldm.evaluation.report import SWEEP_PROMPTS
from ldm.folders import load_autoencoder, load_model
from ldm.metadata import read_settings
from ldm.run import Run
from ldm.sampling import Sampling
from ldm.text.clip import ClipText
from ldm.training.checkpoint import newest
from ldm.training.log import read

CHAIN = ("train_autoencoder.py", "train_clip.py", "cache_latents.py", "train_ldm.py", "train_classifier.py")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A model trained by the scripts on tiny settings, and what each of them printed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    printed = {}
    for script in CHAIN:
        status, printed[script], errors = call(script, *TINY, "cache.use=always", f"out={folder}")
        assert status == 0, errors
    return SimpleNamespace(folder=folder, model=folder / "model", printed=printed)


@pytest.fixture
def draw(chain, tmp_path):
    """Calls txt2img.py with the chain's model; returns the images in the folder, oldest first."""

    def drawn(*args, folder=tmp_path / "images", expected=0):
        status, _, errors = call("txt2img.py", "--ckpt", chain.model, "--outdir", folder, *args)
        assert status == expected, errors
        return sorted(folder.glob("*.png"))

    return drawn


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_explains_itself(script):
    status, out, _ = call(script, "--help")
    assert status == 0 and out.startswith("usage:")


def test_each_script_says_what_it_wrote_and_uses_what_came_before(chain):
    written = [chain.printed[script].splitlines()[-1] for script in CHAIN]
    assert written == [
        f"written to {chain.folder / name}" for name in ("autoencoder", "text", "cache", "model", "classifier")
    ]
    assert "matches and is used again" in chain.printed["train_ldm.py"]
    assert not any("shipped" in text for text in chain.printed.values())


def test_prompts_and_samples_come_in_order_each_with_the_next_seed(draw, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffa ring\n\n  two hearts  \n".encode())
    images = draw("--prompt", "a star", "--from-file", prompts, "--n_samples", 2, "--seed", 7)
    assert [path.name for path in images] == [f"{i:05d}.png" for i in range(6)]
    said = [(read_settings(path).prompt, read_settings(path).seed) for path in images]
    prompts = ["a star", "a star", "a ring", "a ring", "two hearts", "two hearts"]
    assert said == list(zip(prompts, range(7, 13), strict=True))


def test_a_second_call_goes_on_numbering_and_overwrites_nothing(draw):
    """Fault 31."""
    first = draw("--prompt", "a star", "a ring")
    kept = [path.read_bytes() for path in first]
    both = draw("--prompt", "a heart", "--grid")
    assert [path.name for path in both] == ["00000.png", "00001.png", "00002.png", "grid-00002.png"]
    assert [path.read_bytes() for path in first] == kept


def test_an_image_is_drawn_again_from_the_settings_in_it(draw, tmp_path):
    """Fault 36."""
    settings = ("--sampler", "ddpm", "--steps", 3, "--scale", 2.5, "--negative-prompt", "blue", "--H", 48, "--W", 80)
    one = draw("--prompt", "a star", "a ring", "a heart", *settings, "--seed", 5)[1]
    (again,) = draw("--from-image", one, folder=tmp_path / "again")
    assert read_settings(again) == read_settings(one)
    assert pixels(again).shape == (48, 80, 3)
    assert abs(pixels(again) - pixels(one)).max() <= 1  # a batch of another size rounds differently
    (alone,) = draw("--from-image", again, folder=tmp_path / "alone")
    assert np.array_equal(pixels(alone), pixels(again))


def test_settings_of_an_image_may_be_changed(draw, tmp_path):
    (one,) = draw("--prompt", "a star", "--negative-prompt", "blue", "--seed", 5)
    changed = ("--steps", 3, "--prompt", "a ring", "--negative-prompt", "", "--precision", "bf16")
    (other,) = draw("--from-image", one, *changed, folder=tmp_path / "other")
    settings = read_settings(other)
    assert (settings.prompt, settings.sampling["sample"]["steps"], settings.seed) == ("a ring", 3, 5)
    assert (settings.negative_prompt, settings.precision) == ("", "bf16")


@pytest.mark.parametrize(
    ("steps", "scale"), [("--ddim_steps", "--scale"), ("--num_inference_steps", "--guidance_scale")]
)
def test_options_go_by_the_names_of_other_programs_too(draw, steps, scale):
    (image,) = draw("--prompt", "a star", steps, 3, scale, 1.5, "--ddim_eta", 0.5)
    sampling = from_dict(Sampling, read_settings(image).sampling)
    assert (sampling.sample.steps, sampling.guidance.scale, sampling.sampler.eta) == (3, 1.5, 0.5)


def test_any_setting_of_how_to_draw_can_be_given(draw):
    (image,) = draw("--prompt", "a star", "--sampler", "dpm_solver_pp", "--set", "grid=karras", "guidance.rescale=0.5")
    sampling = read_settings(image).sampling
    assert (sampling["sampler"]["name"], sampling["grid"]["name"]) == ("dpm_solver_pp", "karras")
    assert sampling["guidance"]["rescale"] == 0.5


def test_a_classifier_steers_and_is_named_in_the_image(draw, chain):
    plain, steered = draw("--prompt", "a star")[0], ("--classifier", chain.folder / "classifier")
    image = draw("--prompt", "a star", *steered, "--classifier-scale", 30)[-1]
    assert read_settings(image).steering == "classifier, scale 30"
    assert abs(pixels(image) - pixels(plain)).max() > 0
    four = ("--sampler", "ddpm", "--steps", 4)  # the last of them moves nothing, nor does the first, from noise alone
    by_mean = ("--classifier-form", "mean", *four)
    image = draw("--prompt", "a star", *steered, "--classifier-scale", 30, *by_mean)[-1]
    assert read_settings(image).steering == "classifier, scale 30, by the mean"
    assert abs(pixels(image) - pixels(draw("--prompt", "a star", *four)[-1])).max() > 0
    for options, told in {
        (*steered, "--classifier-form", "mean", "--sampler", "ddim"): "give --sampler ddpm --set",
        by_mean: "give both",
    }.items():
        status, _, errors = call("txt2img.py", "--prompt", "a star", *options, "--ckpt", chain.folder / "model")
        assert status == 2 and told in errors
    status, _, errors = call("txt2img.py", "--prompt", "a star", *steered, "--outdir", chain.folder / "none")
    assert status == 2 and "latents of another autoencoder" in errors


def test_further_prompts_steer_and_are_named_in_the_image(draw, chain):
    image = draw("--prompt", "a star", "--also", -2, "a ring", "--also", 3, "a cross", "--perp-neg", 1.5, "a red star")[
        -1
    ]
    said = "also 'a ring', weight -2; also 'a cross', weight 3; not 'a red star', weight 1.5"
    assert read_settings(image).steering == said
    status, _, errors = call("txt2img.py", "--prompt", "a star", "--also", "a ring", 2, "--outdir", chain.folder / "no")
    assert status == 2 and errors.count("\n") == 1 and "a ring is no finite number" in errors


def test_to_steer_away_from_a_model_itself_is_not_to_steer_and_from_guided_pictures_it_is(draw, chain):
    plain, itself, guided = (
        draw("--prompt", "a star", "--scale", scale, *away)[-1]
        for scale, away in (
            (1, ()),
            (1, ("--worse", chain.model, "--worse-scale", 3)),
            (1000, ("--worse", chain.model)),
        )
    )
    assert read_settings(itself).steering == f"away from {chain.folder.name}/model, scale 3"
    assert abs(pixels(itself) - pixels(plain)).max() <= 1
    assert abs(pixels(guided) - pixels(plain)).max() > 1


@pytest.mark.parametrize(
    ("way", "panels"),
    [
        (("vary", "--strength", 0.5), 3),
        (("reword", "--caption", "a square"), 2),
        (("fill", "--times", 2), 3),
        (("fill", "--box", "0,32,64,64"), 3),
        (("restore", "--operator", "downscale", "--amount", 4), 4),
        (("restore", "--operator", "pixels", "--amount", 0.5, "--method", "dps", "--noise", 0.1), 4),
    ],
    ids=lambda way: " ".join(map(str, way)) if isinstance(way, tuple) else str(way),
)
def test_a_picture_is_edited(chain, tmp_path, way, panels):
    picture, mask = tmp_path / "star.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    Image.fromarray(np.uint8(np.tri(64) * 255)).save(mask)
    options = ("--image", picture, "--prompt", "a star", "--ckpt", chain.model)
    options = (
        *options,
        *(("--n_samples", 2) if way[0] != "reword" else ()),
        *(("--mask", mask) if way[0] == "fill" and "--box" not in way else ()),
        "--out",
        tmp_path / "out.png",
    )
    status, printed, errors = call("edit.py", way[0], *way[1:], *options)
    assert status == 0, errors
    assert pixels(tmp_path / "out.png").shape == (68, 66 * panels + 2, 3)
    assert ("PSNR" in printed) == (way[0] in ("fill", "restore"))
    off = re.search(r"what was measured differs in the results by ([\d., e-]+) \(root", printed)
    assert (off is not None) == (way[0] == "restore")
    assert off is None or (len(off[1].split(", ")) == 2 and all(float(number) > 0 for number in off[1].split(", ")))


def test_noise_is_put_on_what_is_measured_and_on_nothing_else(chain, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    common = ("restore", "--operator", "pixels", "--amount", 0.5, "--method", "dps", "--image", tmp_path / "red.png")
    common = (*common, "--prompt", "a star", "--ckpt", chain.model, "--n_samples", 1)
    for name, noise in (("exact", 0), ("noisy", 0.1)):
        status, _, errors = call("edit.py", *common, "--noise", noise, "--out", tmp_path / f"{name}.png")
        assert status == 0, errors
    exact, noisy = (pixels(tmp_path / f"{name}.png")[2:66, 68:132] / 127.5 for name in ("exact", "noisy"))
    hidden = (abs(exact - 1) < 0.01).all(axis=-1)  # the middle of the range, where nothing is known
    assert 0.4 < hidden.mean() < 0.6
    assert (noisy[hidden] == exact[hidden]).all()
    blue = (noisy - exact)[~hidden][:, 2]  # black there, so that half of the noise is cut off
    assert 0.05 < blue.std() < 0.07 and blue.min() >= 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("vary --seed 18446744073709551616", "--seed 18446744073709551616 is not a number from 0 to 2^32 - 4"),
        ("vary --strength 2", "strength 2.0 is not in [0, 1]"),
        ("vary --negative-prompt b --scale 1", '--negative-prompt "b" changes nothing at a guidance scale of 1'),
        ("fill --mask README.md", "README.md is not a readable picture"),
        ("fill --mask {black}", "black.png is black all over"),
        ("restore --operator downscale --amount 1.5", "--amount 1.5 of downscale"),
        ("restore --operator pixels --amount 2", "--amount 2.0 of pixels"),
        ("restore --operator blur --amount 40", "std 40.0"),
        ("restore --operator downscale --amount inf", "--amount inf of downscale"),
        ("restore --operator blur --amount 2 --noise 0.1", "--noise 0.1 is nothing that ddnm allows for"),
        ("restore --operator blur --amount 2 --method dps --noise -1", "--noise -1.0 is not a number from 0"),
        ("fill --box 0,0,65,64", "not within 0,0,64,64"),
        ("fill --box left", "not four whole numbers"),
        ("fill --box 0,0,9,9 --times 0", "--times 0"),
        ("fill --box 0,0,9,9 --times 1 --jump 2", "--jump 2 is of steps that are done again"),
        ("fill --box 0,0,9,9 --sampler heun", "sampler=heun has no say: fill draws parts again"),
        ("fill --box 0,0,9,9 --eta 0.5", "sampler.eta=0.5 has no say: fill draws parts again"),
        ("reword --caption b --n_samples 2", "--n_samples 2 would be the same picture each time; leave it out"),
        ("reword --caption b --seed 3", "--seed 3 has no say: reword draws no noise; leave it out"),
        ("reword --caption b --sampler heun", "sampler=heun has no say: reword goes back and forth"),
        ("reword --caption b --strength -1", "strength -1.0 is not in [0, 1]"),
    ],
)
def test_a_mistake_in_editing_is_told_in_one_line(args, says, chain, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "star.png")
    common = ("--image", tmp_path / "star.png", "--prompt", "a", "--ckpt", chain.model, "--out", tmp_path / "out.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    assert_one_line(call("edit.py", *args.format(black=tmp_path / "black.png").split(), *common), says)
    assert not (tmp_path / "out.png").exists()


def test_levels_found_for_a_model_are_written_with_it(chain, tmp_path):
    options = ("--steps", 3, "--evaluations", 5, "--from-file", SCRIPTS.parent / "data/prompts_one.txt")
    status, printed, errors = call("optimise_grid.py", chain.model, *options, "--out", tmp_path / "model")
    assert status == 0, errors
    sampling = load_model(tmp_path / "model").sampling
    assert len(sampling.grid.times) == sampling.sample.steps == 3
    assert f"written to {tmp_path / 'model'}" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sampler", "ddpm"], "--sampler ddpm draws noise or takes steps of its own"),
        (["--sampler", "ode"], "--sampler ode draws noise or takes steps of its own"),
        (["--out", "mine"], "mine holds files that this program did not write"),
        (["--out", "mine/holiday.jpg/model"], "mine/holiday.jpg takes no file"),
        (["--from-file", "empty.txt"], "empty.txt holds no prompt"),
        (["--from-file", "none.txt"], "none.txt"),
    ],
)
def test_a_mistake_in_looking_for_levels_is_told_before_the_model_is_read(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\ufeff \n\t\n", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").touch()
    assert_one_line(call("optimise_grid.py", "nowhere", "--out", "out", *options), says)
    assert (tmp_path / "mine" / "holiday.jpg").exists()


def test_prompts_are_read_alike_on_every_platform(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa ring\r\n\r\n  étoile \n".encode() + b"\xff star")
    assert read_lines(tmp_path / "prompts.txt") == ["a ring", "étoile", "\ufffd star"]


def test_a_learned_schedule_is_printed_as_settings_of_a_training(chain):
    options = ("--images", 8, "--gamma", -5, 6, "--values", 5)
    status, printed, errors = call("learn_schedule.py", chain.model, *options)
    assert status == 0, errors
    name, settings = printed.splitlines()[-1].split(": ", 1)
    listed = yaml.safe_load(settings)
    assert (name, listed["name"]) == ("schedule", "listed")
    schedule = ListedConfig(listed["gamma"]).build()
    assert schedule.level(0.0).log_snr == pytest.approx(5) and schedule.level(1.0).log_snr == pytest.approx(-6)


def test_a_schedule_of_too_few_values_is_refused():
    assert_one_line(call("learn_schedule.py", "--values", 1), "--values 1")
    assert_one_line(call("learn_schedule.py", "--gamma", 2, 1), "gamma_0 2.0 is not below gamma_1 1.0")
    assert_one_line(call("learn_schedule.py", "--gamma", -30, 5), "--gamma -30 5 is not within")


def test_what_is_measured_of_a_model_comes_as_rows_of_a_table(chain):
    few = ("--prompts-per-category", 1)
    status, printed, errors = call("../benchmarks/guidance.py", chain.model, *few, "--worse", chain.model)
    assert status == 0, errors
    head, _, *rows = (line.split(" | ") for line in printed.splitlines())
    assert [len(row) for row in rows] == [len(head)] * len(rows)
    cells = [cell for row in rows for cell in row[2:]]
    assert all(re.fullmatch(r"\d+ %, \d\.\d\d( \|)?", cell) for cell in cells)
    status, printed, errors = call("../benchmarks/latent_noise.py", chain.model / "autoencoder", *few)
    assert status == 0, errors
    assert printed.count(" %") == 6


def test_any_prompt_gives_an_image_with_a_safe_name(draw):
    """Fault 29."""
    prompts = ["", "🟥 звезда", "../../etc/passwd", "C:\\x", "x" * 5_000, "two\nlines", "%s {} $HOME"]
    images = draw("--prompt", *prompts)
    assert [path.name for path in images] == [f"{i:05d}.png" for i in range(len(prompts))]
    assert [read_settings(path).prompt for path in images] == prompts


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--prompt a --steps 0", "steps 0"),
        ("--prompt a --scale nan", "scale nan"),
        ("--prompt a --eta -1", "eta -1.0"),
        ("--prompt a --negative-prompt b --scale 1", '--negative-prompt "b" changes nothing at a guidance scale of 1'),
        ("--prompt a --H 62", "height 62 is not a multiple"),
        ("--prompt a --W 0", "width 0 is not a multiple"),
        ("--prompt a --H 1000000", "height 1000000 is not a multiple"),
        ("--prompt a --n_samples 0", "--n_samples 0"),
        ("--prompt a --batch 0", "batch 0"),
        ("--prompt a --seed 99999999999999999999", "seed 99999999999999999999"),
        ("--prompt a b --seed 4294967295", "is not a number from 0 to 2^32 - 2"),
        ("--prompt a --device abacus", "--device abacus"),
        ("--prompt a --ckpt nowhere", "nowhere is not there; train one"),
        ("--from-file nowhere.txt", "nowhere.txt"),
        ("--from-image nowhere.png", "nowhere.png"),
        (f"--from-image {__file__}", "test_scripts.py is not a readable PNG image"),
        ("", "nothing to draw"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_written(chain, tmp_path, args, says):
    """Fault 30."""
    folder = tmp_path / "images"
    args = ("--ckpt", chain.model, "--outdir", folder, *args.split())
    assert_one_line(call("txt2img.py", *args), says)
    assert not folder.exists()


def test_a_device_without_double_precision_is_told_in_one_line(monkeypatch):
    empty = torch.empty

    def single_alone(*size, dtype=None, device=None):
        if dtype is torch.float64:
            raise TypeError("Cannot convert a Tensor to float64 dtype")
        return empty(*size, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", single_alone)
    with pytest.raises(ValueError, match="--device cpu has no double precision"):
        device_of("cpu")


def test_a_file_in_the_place_of_the_output_folder_is_told_in_one_line(chain, tmp_path):
    (tmp_path / "images").touch()
    args = ("--ckpt", chain.model, "--prompt", "a", "--outdir", tmp_path / "images")
    assert_one_line(call("txt2img.py", *args), "images")


@pytest.mark.parametrize("script", CHAIN)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("train_ldm.stepz=3", "did you mean 'steps'?"),
        ("--config nowhere.yaml", "no configuration file nowhere.yaml"),
        ("--device abacus", "--device abacus"),
    ],
)
def test_a_mistake_in_a_configuration_is_told_in_one_line(tmp_path, script, args, says):
    assert_one_line(call(script, f"out={tmp_path / 'run'}", *args.split()), says)
    assert not (tmp_path / "run").exists()


def test_of_several_processes_the_first_alone_prints_and_all_tell_of_errors(monkeypatch):
    for rank, prints in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        status, out, _ = call("train_ldm.py", "--print-config", *TINY)
        assert (status, bool(out)) == (0, prints)
        assert_one_line(call("train_ldm.py", "train_ldm.steps=-1"), "steps")


def test_the_printed_configuration_is_that_of_the_run(tmp_path):
    _, out, _ = call("train_ldm.py", "--print-config", *TINY, "denoiser.patch=4")
    (tmp_path / "run.yaml").write_text(out)
    assert load(Run, tmp_path / "run.yaml") == load(Run, None, [*TINY, "denoiser.patch=4"])


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_data_set_is_checked_and_the_status_says_whether_it_is_fit(chain, tmp_path, kind):
    made = ("--out", tmp_path / "set", "--format", kind, "--count", 20, "--shard-size", 10)
    assert call("make_shapes.py", *made)[0] == 0
    options = ("--model", chain.folder, "--json", tmp_path / "check.json", "--size", 32)
    status, page, errors = call("check_data.py", tmp_path / "set", *options)
    assert status == 0, errors
    figures = json.loads((tmp_path / "check.json").read_text())
    assert page.startswith(f"{tmp_path / 'set'} as data.name={kind} data.size=32")
    assert (figures["fit"], figures["listed"], figures["cache"]["pictures"]) == (True, 20, 19)
    assert figures["encoding"]["hours"] > 0 and f"{figures['cache']['bytes']:,} bytes" in page
    for broken in sorted((tmp_path / "set").glob("*.*"))[::2]:
        broken.write_bytes(b"<html>not found</html>")
    status, page, errors = call("check_data.py", tmp_path / "set", "--ranks", 3)
    assert status == 1 and "Traceback" not in errors
    assert "\nnot fit to be trained on:\n" in page
    assert ("20 of 20 pictures are broken" in page) == (kind == "folder")
    assert ("too few for 3 ranks" in page) == (kind == "shards")


def test_a_data_set_is_checked_by_a_configuration_before_anything_is_trained(tmp_path):
    """Captions by the tokens of the CLIP that it names, of which no weight is looked for; or with none at all."""
    (tmp_path / "set").mkdir()
    for i in range(4):
        Image.effect_noise((64, 48), 64).convert("RGB").save(tmp_path / "set" / f"{i}.png")
        (tmp_path / "set" / f"{i}.txt").write_text("an aquamarine chandelier, " * 8 if i else "a word " * 90)
    status, printed, _ = call("train_ldm.py", "--print-config", *TINY, "data.size=32", f"out={tmp_path / 'run'}")
    assert status == 0
    settings = yaml.safe_load(printed)
    settings["text"] |= {"model": "ViT-L-14", "pretrained": "openai"}
    settings["data"] = {"name": "folder", "size": 32, "val_share": 0.5}
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(settings))
    by = ("--config", tmp_path / "photos.yaml")
    status, page, errors = call("check_data.py", tmp_path / "set", *by)
    assert status == 0, errors
    assert "data.size=32" in page and "1 are cut to the 77 of photos's text encoder" in page
    assert "outside its vocabulary" not in page and "\n            2 pictures and" in page  # half are held out
    for text in (tmp_path / "set").glob("*.txt"):
        text.unlink()
    status, page, errors = call("check_data.py", tmp_path / "set", *by)
    assert status == 1 and "--no-captions" in page
    figures = tmp_path / "figures.json"
    status, page, errors = call("check_data.py", tmp_path / "set", "--no-captions", "--json", figures, *by)
    assert status == 0, errors
    assert "4, captions not looked for: 4 usable" in page
    assert not {"captions", "cache", "encoding"} & json.loads(figures.read_text()).keys()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("nowhere", "there is no folder 'nowhere'"),
        ("nowhere.tar", "no archive 'nowhere.tar'"),
        ("data/sample --size 30", "sides must be multiples of 4"),
        ("data/sample --size 0", "size 0"),
        ("data/sample --max-broken 2", "max_broken 2.0"),
        ("data/sample --ranks 0", "--ranks 0"),
        ("data/sample --workers -1", "--workers -1"),
        ("data/sample --model data", "data/autoencoder"),
        ("data/sample --device abacus", "--device abacus"),
        ("data/sample --json README.md", "README.md is there already"),
        ("data/sample --config configs/demo.yaml --model ldm/assets/shapes64", "leave one out"),
        ("data/sample --config none.yaml", "no configuration file none.yaml"),
    ],
)
def test_a_mistake_in_checking_is_told_in_one_line(args, says, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert_one_line(call("check_data.py", *args.split()), says)


def test_the_model_that_comes_with_the_package_draws(tmp_path):
    status, _, errors = call("txt2img.py", "--prompt", "a red star", "--steps", 2, "--outdir", tmp_path)
    assert status == 0, errors
    assert pixels(tmp_path / "00000.png").shape == (64, 64, 3)


def test_prompts_that_are_cut_are_told_and_read_no_more_at_once_than_images_are_drawn(tmp_path, monkeypatch):
    read, at_once = ClipText.forward, []

    def forward(text, captions):
        at_once.append(len(captions))
        return read(text, captions)

    monkeypatch.setattr(ClipText, "forward", forward)
    prompts = ["a star", "a ring " * 40, "a ring " * 40, "a heart " * 40]
    drawing = ("--steps", 2, "--batch", 2, "--negative-prompt", "blue " * 40, "--outdir", tmp_path)
    status, _, errors = call("txt2img.py", "--prompt", *prompts, *drawing)
    assert status == 0, errors
    assert re.search(r"^note: prompts cut to the 32 tokens that the model reads: 2$", errors, re.MULTILINE)
    assert re.search(r"^note: negative prompt cut to the 32 tokens that the model reads: 1$", errors, re.MULTILINE)
    assert max(at_once) == 2


def last_step(log):
    return max((line["step"] for line in read(log)), default=0)


def interrupt(command, log, number):
    """Start ``command``, send it the signal once it has made three steps; returns its exit status and errors."""
    steps, patience = last_step(log) + 3, time.monotonic() + 300
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            while last_step(log) < steps and process.poll() is None and time.monotonic() < patience:
                time.sleep(0.1)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_run_that_is_interrupted_saves_and_the_same_command_goes_on_from_there(tmp_path):
    endless = ("steps=1000000", "save_every=1000000", "validate_every=1000000", "sample_every=1000000")
    command = [sys.executable, SCRIPTS / "train_autoencoder.py", *TINY, f"out={tmp_path}"]
    command += [f"train_autoencoder.{setting}" for setting in endless]
    training = tmp_path / "training" / "autoencoder"
    stopped = []
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        code, errors = interrupt(command, training / "log.jsonl", number)
        assert code == status, errors
        stopped.append(int(re.search(r"stopped at step (\d+)", errors)[1]))
        assert newest(training / "state").name == f"step-{stopped[-1]:08d}"
        assert (tmp_path / "autoencoder" / "manifest.json").is_file()
    assert 3 <= stopped[0] < stopped[1]
    steps = [line["step"] for line in read(training / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, stopped[1] + 1))


def test_the_trained_folder_is_all_that_drawing_needs(chain, tmp_path):
    moved = chain.model.rename(tmp_path / "elsewhere")
    try:
        image, _ = next(load_model(moved)(["a star"]))
    finally:
        moved.rename(chain.model)
    assert image.shape == (1, 3, 64, 64)


@pytest.fixture(scope="module")
def evaluated(chain, tmp_path_factory):
    """The report of the chain's model, two prompts a category."""
    folder = tmp_path_factory.mktemp("evaluation") / "report"
    options = (
        "--prompts-per-category",
        2,
        "--sweep",
        "scale=1,3",
        "--sweep-prompts",
        1,
        "--likelihood",
        "--out",
        folder,
    )
    status, printed, errors = call("evaluate.py", chain.model, *options)
    assert status == 0, errors
    return SimpleNamespace(folder=folder, printed=printed, figures=json.loads((folder / "report.json").read_text()))


def test_evaluating_a_model_writes_a_report_with_every_figure(evaluated):
    figures = evaluated.figures
    assert figures["score"]["overall"]["of"] == len(figures["pictures"]) == 20
    assert figures["score"]["categories"].keys() == figures["ceiling"]["categories"].keys() == {*CATEGORIES}
    assert figures["sweeps"]["guidance.scale"].keys() == {"1", "3"}
    few = "\n".join(prompt.text for prompt in prompt_set(1, TRAINING_SEED))
    assert hashlib.sha256(few.encode()).hexdigest()[:10] in figures["what"][SWEEP_PROMPTS]
    assert figures["what"]["steps"] == 2 and figures["seconds_per_image"] > 0
    assert figures["text_use"].keys() == {"true", "shuffled", "empty", "reordered"}
    assert any("Likelihood" in title for title in figures["tables"])
    assert len(figures["bound_terms"]["with none"]) == BOUND_STEPS - 1
    assert len(list((evaluated.folder / "images").glob("*.png"))) == 20
    assert "20 pictures right" in evaluated.printed and str(evaluated.folder) in evaluated.printed


def test_the_page_of_a_report_needs_no_other_file_and_shows_prompts_and_what_was_read(evaluated):
    page = (evaluated.folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    for entry in evaluated.figures["pictures"][::2]:
        assert entry["prompt"] in page and entry["read"] in page
    assert page.count("data:image/png;base64,") == 20 and page.count("<svg") == 3  # sweep, bound and losses
    assert "score against guidance.scale (10 pictures each, of other prompts)" in page


def test_pictures_of_another_program_are_scored(tmp_path):
    status, printed, _ = call("evaluate.py", "--write-prompts", tmp_path / "prompts.txt", "--prompts-per-category", 3)
    assert status == 0 and printed.startswith("30 prompts")
    (tmp_path / "drawn").mkdir()
    prompts = read_prompts(tmp_path / "prompts.txt")
    for number, picture in enumerate(true_pictures(prompts)):
        Image.fromarray(picture).save(tmp_path / "drawn" / f"{number:03d}.png")
    options = ("--images", tmp_path / "drawn", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "report")
    status, printed, errors = call("evaluate.py", *options)
    assert status == 0, errors
    assert "100.0 % of 30 pictures right" in printed
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert figures["score"]["categories"].keys() == {*CATEGORIES}


def test_other_prompts_of_some_categories_can_be_asked_for(tmp_path):
    options = ("--prompts-per-category", 2, "--categories", "full, counting")
    for seed in ((), ("--prompt-seed", 7)):
        file = tmp_path / f"prompts{len(seed)}.txt"
        status, printed, errors = call("evaluate.py", "--write-prompts", file, *options, *seed)
        assert status == 0 and printed.startswith("4 prompts"), errors
    own, other = (
        [prompt.text for name in ("counting", "full") for prompt in prompt_set(2, seed) if prompt.category == name]
        for seed in (SEED, 7)
    )
    assert (tmp_path / "prompts0.txt").read_text().splitlines() == own
    assert (tmp_path / "prompts2.txt").read_text().splitlines() == other != own


def test_a_first_stage_is_scored_alone(chain, tmp_path):
    options = (chain.folder / "autoencoder", "--prompts-per-category", 1, "--out", tmp_path / "report")
    status, printed, errors = call("evaluate.py", *options)
    assert status == 0, errors
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert figures["score"]["overall"]["of"] == 10 and figures["tables"]["Autoencoder"]["psnr"] > 0
    assert "true pictures that went through the autoencoder" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", 2**64], "--seed 18446744073709551616 is not a number from 0 to 2^32 - 500"),
        (["--seed", -1], "--seed -1 is not a number"),
        (["--sweep", "seed=1,2"], "unknown section 'seed'"),
        (["--sweep", "steps=1.5"], "could not be converted to Integer"),
        (["--sweep", "steps=a,b"], "'a,b' is no list of numbers"),
        (["--prompts-per-category", 0], "0 prompts per category are too few"),
        (["--images", "data/sample", "--steps", 3], "leave out the model"),
        (["--images", "data/sample", "--seed", 0], "leave out the model"),
        (["--images", "data/sample", "--also", 2, "a ring"], "leave out the model"),
        (["--images", "data/prompts.txt"], "data/prompts.txt is not a folder"),
        (["--out", "tests"], "tests holds other files"),
        (["--inception", "none.pth"], "--inception none.pth is not there"),
        (["--lpips", "README.md"], "README.md"),
        (["--prompts", "data/prompts.txt", "--prompts-per-category", 3], "leave out --prompts-per-category"),
        (["--prompts", "data/prompts.txt", "--prompt-seed", 3], "leave out --prompt-seed"),
        (["--prompt-seed", -1], "--prompt-seed -1 is not a number from 0"),
        (["--categories", "full,counts"], "--categories 'counts' is not one of single object, two objects, counting"),
        (["--classifier-form", "mean", "--sweep", "steps=2"], "leave out --sweep, or the form"),
        (["ldm/assets/shapes64/autoencoder", "--scale", 2], "is an autoencoder alone; leave out --scale"),
        (["ldm/assets/shapes64/autoencoder", "--classifier-scale", 0], "alone; leave out --classifier-scale"),
        (["--sweep-prompts", 3], "--sweep-prompts 3 are of a --sweep without --prompts"),
        (["--clip-weights", "README.md"], "--clip-weights are of the model that --clip names"),
        (["--clip", "ViT-B-32:openai", "--clip-run", "."], "the score is of one; leave one out"),
        (["--images", "data/sample", "--lpips", "README.md"], "--images have none; leave it out"),
        (["--write-prompts", "new.txt", "--images", "data/sample"], "--write-prompts scores nothing; leave out"),
        (["--write-prompts", "new.txt", "--steps", 3], "--write-prompts scores nothing; leave out"),
        (["--write-prompts", "new.txt", "--clip", "ViT-B-32:openai"], "--write-prompts scores nothing; leave out"),
        (["--write-prompts", "README.md"], "README.md"),
        (["--prompts", "README.md"], "is no caption of the shapes world"),
    ],
)
def test_a_mistake_in_evaluating_is_told_in_one_line(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert_one_line(call("evaluate.py", "--out", tmp_path / "report", *options), says)


def test_general_metrics_are_tables_and_what_is_missing_is_noted(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    options = ("--prompts-per-category", 1, "--general", "--clip-run", chain.folder, "--out", tmp_path / "report")
    status, _, errors = call("evaluate.py", chain.model, *options)
    assert status == 0, errors
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert figures["tables"].keys() == {"CLIP score", "Autoencoder"}
    assert figures["tables"]["Autoencoder"]["psnr"] > 0 and len(figures["tables"]["Autoencoder"]["kl"]) == 4
    assert any("FID and KID left out" in note and "--inception" in note for note in figures["notes"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "clip_score of shuffled captions" in page and "--inception" in page


@pytest.mark.parametrize("script", ["evaluate.py", "metrics.py"])
def test_a_network_that_is_named_and_cannot_be_had_is_told_before_anything_is_drawn(
    script, chain, tmp_path, monkeypatch
):
    monkeypatch.setattr(Drawer, "__call__", lambda *_, **__: pytest.fail("it drew"))
    for named, says in (
        (("--clip", "ViT-B32:openai"), "open_clip has no model 'ViT-B32'"),
        (("--lpips", SCRIPTS.parent / "README.md"), "README.md"),
        (("--inception", SCRIPTS.parent / "README.md"), "README.md"),
    ):
        assert_one_line(call(script, chain.model, *named, "--out", tmp_path / "found"), says)
    assert not (tmp_path / "found").exists()


def test_a_model_of_any_pictures_is_measured_on_its_held_out_ones(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    options = ("--count", 5, "--clip-run", chain.folder, "--steps", 2, "--out", tmp_path / "found")
    status, printed, errors = call("metrics.py", chain.model, *options)
    assert status == 0, errors
    figures = json.loads((tmp_path / "found" / "figures.json").read_text())
    held_out = [*load(Run, chain.model / "config.yaml").data.build("val").captions(5)]
    assert figures["captions"] == held_out and len([*(tmp_path / "found" / "images").iterdir()]) == 5
    assert figures["what"]["captions"] == "5 held-out ones" and figures["what"]["sample"]["steps"] == 2
    assert (
        figures["tables"].keys() == {"CLIP score", "Autoencoder"} and figures["tables"]["CLIP score"]["pictures"] == 5
    )
    assert "note: FID and KID left out" in printed and "--inception" in printed
    status, printed, _ = call("metrics.py", chain.model, "--count", 7, "--steps", 1, "--out", tmp_path / "found")
    assert status == 0 and "note: of 7 held-out samples that are asked for there are 6" in printed
    own = tmp_path / "own.txt"
    own.write_text("a dog on a sofa\n\nein Pferd\n", encoding="utf-8")
    other = ("--captions", own, "--reference", "data/sample", "--steps", 1, "--out", tmp_path / "found")
    monkeypatch.chdir(SCRIPTS.parent)
    status, _, errors = call("metrics.py", chain.model, *other)  # in place of the first
    assert status == 0, errors
    figures = json.loads((tmp_path / "found" / "figures.json").read_text())
    assert figures["captions"] == ["a dog on a sofa", "ein Pferd"] and figures["what"]["captions"] == str(own)
    assert len([*(tmp_path / "found" / "images").iterdir()]) == 2


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run whose autoencoder was trained on a folder of noise, and that has no model."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures" / "noise").mkdir(parents=True)
    for number in range(12):
        Image.effect_noise((32, 32), 64).convert("RGB").save(folder / "pictures" / "noise" / f"{number}.png")
    data = ("data.name=folder", f"data.path={folder / 'pictures'}", "data.size=32", "data.val_share=0.4")
    small = [setting for setting in TINY if not setting.startswith("data.")]
    status, _, errors = call("train_autoencoder.py", *small, *data, "sample.batch=2", f"out={folder / 'run'}")
    assert status == 0, errors
    return folder / "run"


def test_a_first_stage_of_own_pictures_is_measured_on_its_held_out_ones(own_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    status, printed, errors = call("metrics.py", own_run / "autoencoder", "--count", 3, "--out", tmp_path / "found")
    assert status == 0, errors
    (file,) = [path for path in (tmp_path / "found").rglob("*") if path.name != "manifest.json"]  # nothing was drawn
    figures = json.loads(file.read_text())
    autoencoder, run = load_autoencoder(own_run / "autoencoder")
    (batch,) = first_batches(run.data.build("val"), 3, 3)
    wanted = autoencoder_report(autoencoder, to_bytes(batch.image), batch=2)
    found = figures["tables"]["Autoencoder"]
    assert found["pictures"] == 3 and figures["what"]["reference"] == "3 held-out pictures"
    assert found["psnr"] == wanted.psnr and found["kl"] == wanted.bottleneck["kl"]
    assert figures["what"]["batch"] == 2, "as the run draws"
    assert f"psnr {wanted.psnr:.4g}" in printed
    for name, option in (("rFID", "--inception"), ("LPIPS", "--lpips")):
        assert f"note: {name} left out" in printed and option in printed


def test_weights_named_download_are_those_of_the_cache_once_they_are_there(own_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save({name: t for name, t in alexnet().state_dict().items() if name.startswith("features")}, cached)
    options = ("--count", 3, "--lpips", "download", "--out", tmp_path / "found")
    status, printed, errors = call("metrics.py", own_run / "autoencoder", *options)
    assert status == 0, errors
    assert json.loads((tmp_path / "found" / "figures.json").read_text())["tables"]["Autoencoder"]["lpips"] > 0
    assert "LPIPS left out" not in printed


def test_a_run_without_a_model_is_measured_by_its_autoencoder_on_pictures_that_are_named(own_run, tmp_path):
    options = ("--reference", SCRIPTS.parent / "data" / "sample", "--batch", 16, "--out", tmp_path / "found")
    status, _, errors = call("metrics.py", own_run, *options)
    assert status == 0, errors
    figures = json.loads((tmp_path / "found" / "figures.json").read_text())
    assert figures["what"]["model"] == str(own_run / "autoencoder") and figures["what"]["batch"] == 16
    assert figures["tables"]["Autoencoder"]["pictures"] == 48 and figures["notes"][-1] != "not measured to the end"


def test_fewer_held_out_pictures_than_are_asked_for_are_noted(own_run, tmp_path):
    status, printed, errors = call("metrics.py", own_run, "--out", tmp_path / "found")
    assert status == 0, errors
    assert "note: of 1000 held-out samples that are asked for there are" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--captions", "data/prompts.txt"], "holds an autoencoder and no model; leave out --captions"),
        (["--steps", 3, "--seed", 0], "no model; leave out --steps, --seed"),
        (["--set", "guidance.scale=2", "--perp-neg", 1, "a ring"], "no model; leave out --set, --perp-neg"),
        (["--clip", "ViT-B-32:openai"], "no model; leave out --clip"),
        (["--clip-run", "."], "no model; leave out --clip-run"),
        (["--count", 3, "--reference", "data/sample"], "give 1 or more, and not pictures of your own"),
        (["--count", 1], "1 pictures are too few"),
        (["--batch", 0], "batch 0 is not at least 1"),
        (["--lpips", "none.pth"], "--lpips none.pth is not there"),
    ],
)
def test_a_mistake_in_measuring_a_first_stage_is_told_in_one_line(options, says, own_run, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    for folder in (own_run, own_run / "autoencoder"):
        assert_one_line(call("metrics.py", folder, "--out", tmp_path / "found", *options), says)
    assert not (tmp_path / "found").exists()


def test_pictures_that_are_gone_are_told_in_one_line(own_run, tmp_path):
    pictures = own_run.parent / "pictures"
    moved = pictures.rename(own_run.parent / "elsewhere")
    try:
        result = call("metrics.py", own_run / "autoencoder", "--out", tmp_path / "found")
    finally:
        moved.rename(pictures)
    assert_one_line(result, "the run's own data is not here")
    assert "give --reference" in result[2]


def test_the_benchmark_sends_first_stages_of_other_pictures_to_metrics(own_run, tmp_path):
    within, out = own_run / "autoencoder", ("--out", tmp_path / "report")
    assert_one_line(call("evaluate.py", within, *out), f"measure it by python scripts/metrics.py {within}")
    assert_one_line(call("evaluate.py", own_run, *out), f"holds an autoencoder and no model; give {within}")


@pytest.mark.parametrize("script", ["evaluate.py", "metrics.py", "sample_autoencoder.py"])
def test_a_folder_that_is_not_there_is_told_so(script, tmp_path):
    missing = tmp_path / "run" / "autoencoder"
    result = call(script, missing, "--out", tmp_path / "found")
    assert_one_line(result, f"{missing} is not there")
    assert "manifest.json" not in result[2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--count", 0], "--count 0 held-out ones: give 1 or more"),
        (["--count", 3, "--captions", "data/prompts.txt", "--reference", "data/sample"], "--count 3 held-out ones"),
        (["--captions", os.devnull], "holds no caption; write one on each line"),
        (["--reference", "none"], "--reference none is not there"),
        (["--reference", "tests"], "tests holds no pictures"),
        (["--clip-weights", "README.md"], "--clip-weights are of the model that --clip names"),
        (["--clip", "ViT-B32:openai"], "open_clip has no model 'ViT-B32'"),
        (["--clip-run", "data"], "has no whole checkpoint; train a CLIP"),
        (["--seed", -1], "--seed -1 is not a number"),
        (["--out", "tests"], "tests holds other files"),
        (["--out", "ldm/assets/shapes64"], "holds other files, which a report would replace"),
    ],
)
def test_a_mistake_in_measuring_is_told_in_one_line(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    assert_one_line(call("metrics.py", "ldm/assets/shapes64", "--out", tmp_path / "found", *options), says)


def test_a_report_replaces_an_older_one_but_nothing_else(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na ring\n")
    (tmp_path / "drawn").mkdir()
    for number, picture in enumerate(true_pictures(read_prompts(prompts))):
        Image.fromarray(picture).save(tmp_path / "drawn" / f"{number}.png")
    command = ("evaluate.py", "--images", tmp_path / "drawn", "--prompts", prompts, "--out", tmp_path / "report")
    assert [call(*command)[0] for _ in range(2)] == [0, 0]
    (tmp_path / "report" / "notes.txt").write_text("mine")
    assert_one_line(call(*command), "holds other files")
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("of another program")
    assert_one_line(call(*command[:-1], tmp_path / "other"), "holds other files")


def test_numbers_in_the_names_of_pictures_count_as_numbers(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {color} {shape}\n" for shape, color in TRAINED[:12]))
    (tmp_path / "drawn").mkdir()
    for number, picture in enumerate(true_pictures(read_prompts(prompts))):
        Image.fromarray(picture).save(tmp_path / "drawn" / f"picture {number}.png")
    options = ("--images", tmp_path / "drawn", "--prompts", prompts, "--out", tmp_path / "report")
    status, printed, errors = call("evaluate.py", *options)
    assert status == 0, errors
    assert "100.0 % of 12 pictures right" in printed


def test_compressed_pictures_are_refused(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ring\n")
    options = ("--images", tmp_path, "--prompts", prompts, "--out", tmp_path / "report")
    assert_one_line(call("evaluate.py", *options), "save PNG files")


def test_pictures_too_small_to_read_are_refused(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    (tmp_path / "prompts.txt").write_text("a ring\n")
    options = ("--images", tmp_path, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "report")
    assert_one_line(call("evaluate.py", *options), "0.png has 32 pixels a side, too few to read; draw at least 64")


def test_a_model_of_a_smaller_world_is_scored_on_that_too(chain, tmp_path):
    model = tmp_path / "run" / "model"
    shutil.copytree(chain.model, model)
    config = (model / "config.yaml").read_text().replace("max_objects: 4", "max_objects: 1")
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "config.yaml").write_text(config)
    manifest["config.yaml"] = hashlib.sha256(config.encode()).hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))
    status, printed, errors = call("evaluate.py", model, "--prompts-per-category", 1, "--out", tmp_path / "report")
    assert status == 0, errors
    assert "training pictures can show what" in printed and " of the 10 prompts say" in printed


def test_what_is_filled_is_the_box_and_nothing_else(chain, tmp_path):
    picture, out = tmp_path / "red.png", tmp_path / "out.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    options = ("--image", picture, "--prompt", "a star", "--ckpt", chain.model, "--box", "0,8,16,40", "--out", out)
    status, _, errors = call("edit.py", "fill", *options)
    assert status == 0, errors
    hole, filled = (pixels(out)[2:66, left : left + 64] for left in (2, 68))
    inside = np.zeros((64, 64), bool)
    inside[8:40, 0:16] = True  # rows, columns
    for panel in (hole, filled):
        assert (panel[~inside] == [255, 0, 0]).all()
    assert (abs(hole[inside] - 127.5) <= 1).all()
    assert (filled[inside] != [255, 0, 0]).any() and filled[inside].std() > 0
