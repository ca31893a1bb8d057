"""A first stage alone, written for diffusers and read from it: the same latents and pictures, and trainings on it."""

import json
from shutil import copytree

import pytest
import torch
from calls import SCRIPTS, assert_one_line, call
from conftest import PACE, TINY
from diffusers import AutoencoderKL, UNet2DConditionModel
from models import random_model
from safetensors.torch import load_file, save_file

from ldm.config import load
from ldm.folders import CONFIG, latent_fingerprint, load_autoencoder, save_autoencoder
from ldm.interchange import autoencoder_from_diffusers, autoencoder_to_diffusers
from ldm.interchange.autoencoder import FORMER
from ldm.interchange.parts import SETTINGS, WEIGHTS
from ldm.run import Run

LAYOUT = (
    "data.size=32",
    *(f"autoencoder.{each}" for each in ("width=32", "multipliers=[1,2]", "patch=1", "norm=group", "blocks=1")),
    "autoencoder.attention=true",
)
PICTURES = f"data.path={SCRIPTS.parent / 'data' / 'sample'}"


def of_ours(folder, *overrides):
    """An autoencoder folder of random weights whose latents are scaled by channel."""
    run = load(Run, None, [*LAYOUT, *overrides])
    torch.manual_seed(0)
    network = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    network.mean.copy_(torch.randn_like(network.mean))
    network.std.copy_(torch.rand_like(network.std) + 0.5)
    save_autoencoder(network, run, folder)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return of_ours(tmp_path_factory.mktemp("run") / "autoencoder")


def small(**settings):
    """An AutoencoderKL of two levels, of random weights."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=16,
        **settings,
    )


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """An AutoencoderKL as the first ones were published: no scale in its settings, other names in its attention."""
    folder = tmp_path_factory.mktemp("theirs") / "vae"
    torch.manual_seed(1)
    network = small(sample_size=32)
    for weight in network.parameters():
        weight.data = (weight + 0.05 * torch.randn_like(weight)).half().float()
    network.save_pretrained(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    for key in ("scaling_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        del settings[key]
    (folder / SETTINGS).write_text(json.dumps(settings))
    file = folder / f"{WEIGHTS}.safetensors"
    save_file({formerly(key): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


def formerly(key):
    for old, new in FORMER.items():
        key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return key


@pytest.fixture(scope="module")
def imported(theirs, tmp_path_factory):
    """A run's folder that holds the autoencoder read from theirs."""
    run = tmp_path_factory.mktemp("imported") / "run"
    status, said, errors = call("convert.py", "import", theirs, "--out", run)
    assert status == 0, errors
    assert said == f"written to {run / 'autoencoder'}\n"
    return run


def of_diffusers(folder):
    return AutoencoderKL.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def both_ways(network, theirs, scaling):
    """((latents, pictures) of ours, those of theirs), theirs scaled as its users scale them."""
    image, latent = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 16, 16)
    said = theirs.encode(image).latent_dist.mean * scaling, theirs.decode(latent / scaling).sample
    return (network.encode(image), network.decode(latent, clamp=False)), said


def test_a_written_first_stage_says_the_same_there(ours, tmp_path):
    status, said, errors = call("convert.py", "export", ours, "--out", tmp_path / "vae")
    assert status == 0, errors
    assert said == f"written to {tmp_path / 'vae'}\n"
    there = of_diffusers(tmp_path / "vae")
    assert (there.config.scaling_factor, there.config.sample_size) == (1, 32)
    here, said = both_ways(load_autoencoder(ours)[0], there, 1)
    assert here[0].std() > 0.05 and here[1].std() > 0.05
    torch.testing.assert_close(said, here, atol=1e-5, rtol=1e-4)


def test_half_precision_is_half_the_size_and_nearly_the_same(ours, tmp_path):
    for name, options in (("whole", ()), ("half", ("--half",))):
        status, _, errors = call("convert.py", "export", ours, "--out", tmp_path / name, *options)
        assert status == 0, errors
    whole, half = ((tmp_path / name / f"{WEIGHTS}.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    here, said = both_ways(load_autoencoder(ours)[0], of_diffusers(tmp_path / "half").float(), 1)
    torch.testing.assert_close(said, here, atol=1e-2, rtol=0)


def test_what_was_written_reads_back_as_the_same_but_for_half_precision(ours, tmp_path):
    autoencoder_to_diffusers(ours, tmp_path / "vae")
    autoencoder_from_diffusers(tmp_path / "vae", tmp_path / "autoencoder")
    (before, made_by), (back, run) = load_autoencoder(ours), load_autoencoder(tmp_path / "autoencoder")
    assert (run.autoencoder, run.data.size) == (made_by.autoencoder, 32)
    image, latent = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(back.encode(image), before.encode(image), atol=1e-2, rtol=0)
    torch.testing.assert_close(back.decode(latent), before.decode(latent), atol=1e-2, rtol=0)


def test_a_first_stage_that_is_read_says_the_same_here_but_for_half_precision(theirs, imported):
    network, run = load_autoencoder(imported / "autoencoder")
    assert run.data.size == 32
    here, said = both_ways(network, of_diffusers(theirs), 0.18215)
    assert here[0].std() > 0.05 and here[1].std() > 0.05
    torch.testing.assert_close(here[0], said[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(here[1], said[1], atol=3e-2, rtol=0)


def test_a_denoiser_trains_on_the_latents_of_a_first_stage_that_was_read(imported):
    network = (each for each in TINY if each.startswith(("denoiser", "train_ldm", "sample", "guidance")))
    settings = ("--config", imported / "autoencoder" / CONFIG, f"out={imported}", PICTURES, *network)
    status, said, errors = call("train_ldm.py", *settings)
    assert status == 0, errors
    assert said.splitlines()[-1] == f"written to {imported / 'model'}"
    own, drawn_on = (load_autoencoder(imported / place)[0] for place in ("autoencoder", "model/autoencoder"))
    assert latent_fingerprint(own) == latent_fingerprint(drawn_on)


def test_a_run_of_other_settings_is_told_those_of_the_first_stage_that_was_read(imported):
    result = call("train_ldm.py", f"out={imported}", "data.name=folder", PICTURES, "data.size=32")
    assert_one_line(result, "give autoencoder.width=32 autoencoder.multipliers=[1,2]")


@pytest.mark.parametrize("decoder_only", [True, False])
def test_a_first_stage_that_was_read_trains_on(decoder_only, imported, tmp_path):
    pace = (f"train_autoencoder.{each}" for each in PACE)
    status, said, errors = call(
        *("train_autoencoder.py", "--config", imported / "autoencoder" / CONFIG, *pace, PICTURES),
        *(f"base={imported}", f"out={tmp_path}", f"decoder_only={str(decoder_only).lower()}"),
    )
    assert status == 0, errors
    assert f"the autoencoder starts from {imported}" in said
    before, after = (load_autoencoder(run / "autoencoder")[0] for run in (imported, tmp_path))
    assert (latent_fingerprint(before) == latent_fingerprint(after)) == decoder_only
    assert any((a != b).any() for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True))


def test_a_first_stage_that_was_read_is_looked_at_and_scored(imported, tmp_path):
    picture = next((SCRIPTS.parent / "data" / "sample").glob("*.png"))
    for command in (
        ("sample_autoencoder.py", imported, "--images", picture, "--out", tmp_path),
        ("sample_autoencoder.py", imported, "--what", "samples", "--count", 2, "--out", tmp_path),
        ("metrics.py", imported / "autoencoder", "--reference", picture.parent, "--out", tmp_path / "report"),
    ):
        status, _, errors = call(*command)
        assert status == 0, errors
    assert_one_line(call("sample_autoencoder.py", imported, "--out", tmp_path), "give --images")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["bottleneck=vq"], "(a bottleneck other than kl)"),
        (["autoencoder.patch=2", "autoencoder.bounded=true"], "(autoencoder.patch=2, autoencoder.bounded=true)"),
    ],
)
def test_a_first_stage_without_counterpart_is_refused_by_its_settings(overrides, says, tmp_path):
    of_ours(tmp_path / "autoencoder", *overrides)
    result = call("convert.py", "export", tmp_path / "autoencoder", "--out", tmp_path / "vae")
    assert_one_line(result, says)
    assert "train one with the autoencoder and the bottleneck of configs/shapes_sd.yaml" in result[2]
    assert not (tmp_path / "vae").exists()


def test_of_a_model_that_has_no_counterpart_the_first_stage_alone_is_exported(tmp_path):
    model = random_model(tmp_path / "model", ["a star"], *TINY, *LAYOUT)
    assert_one_line(call("convert.py", "export", model, "--out", tmp_path / "out"), f"export {model / 'autoencoder'}")
    status, _, errors = call("convert.py", "export", model / "autoencoder", "--out", tmp_path / "out")
    assert status == 0, errors
    here, said = both_ways(load_autoencoder(model / "autoencoder")[0], of_diffusers(tmp_path / "out"), 1)
    torch.testing.assert_close(said, here, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["export", "import"])
def test_a_source_that_is_not_there_is_told(way, tmp_path):
    result = call("convert.py", way, tmp_path / "missing", "--out", tmp_path / "out")
    assert_one_line(result, f"there is no folder {tmp_path / 'missing'}")


def test_of_a_run_without_a_model_the_first_stage_is_pointed_to(ours, tmp_path):
    result = call("convert.py", "export", ours.parent, "--out", tmp_path / "out")
    assert_one_line(result, f"give {ours} to export it alone")


def test_another_network_alone_is_not_read(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / SETTINGS).write_text(json.dumps({"_class_name": UNet2DConditionModel.__name__}))
    result = call("convert.py", "import", tmp_path / "unet", "--out", tmp_path / "run")
    assert_one_line(result, "UNet2DConditionModel alone has no counterpart here; give an AutoencoderKL")
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_latents_that_are_shifted_are_those_of_its_pipelines(tmp_path):
    """As Stable Diffusion 3's and Flux's: (z - shift) * scale, of an autoencoder without the 1 x 1 convolutions."""
    torch.manual_seed(2)
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    there = small(latent_channels=16, shift_factor=0.5, scaling_factor=1.5305, **without)
    there.save_pretrained(tmp_path / "vae")
    autoencoder_from_diffusers(tmp_path / "vae", tmp_path / "autoencoder")
    network, _ = load_autoencoder(tmp_path / "autoencoder")
    image, latent = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 16, 16, 16)
    wanted = (there.encode(image).latent_dist.mean - 0.5) * 1.5305
    assert abs(wanted.mean()) > 0.3
    torch.testing.assert_close(network.encode(image), wanted, atol=1e-2, rtol=0)
    back = there.decode(latent / 1.5305 + 0.5).sample
    torch.testing.assert_close(network.decode(latent, clamp=False), back, atol=1e-2, rtol=0)
    autoencoder_to_diffusers(tmp_path / "autoencoder", tmp_path / "again")
    torch.testing.assert_close(
        of_diffusers(tmp_path / "again").encode(image).latent_dist.mean, wanted, atol=1e-2, rtol=0
    )


def test_a_first_stage_whose_shift_is_no_number_is_refused(theirs, tmp_path):
    copy = copytree(theirs, tmp_path / "vae")
    settings = json.loads((copy / SETTINGS).read_text())
    (copy / SETTINGS).write_text(json.dumps(settings | {"shift_factor": "half"}))
    assert_one_line(call("convert.py", "import", copy, "--out", tmp_path / "run"), "shift_factor 'half' is no number")
    assert not (tmp_path / "run").exists()


def test_what_a_run_trained_is_not_replaced_by_what_is_read(theirs, tmp_path):
    (tmp_path / "training" / "autoencoder").mkdir(parents=True)
    assert_one_line(call("convert.py", "import", theirs, "--out", tmp_path), "give another --out")
    assert not (tmp_path / "autoencoder").exists()


def test_nothing_is_written_into_a_folder_that_is_complete(theirs, ours):
    assert_one_line(call("convert.py", "import", theirs, "--out", ours), "which is complete; name another place")
    load_autoencoder(ours)
