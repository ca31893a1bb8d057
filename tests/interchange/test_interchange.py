"""Models written for diffusers and read from it: what one says, the other says, part by part and as a whole.

diffusers keeps its tables in float32, and its tokenizer knows no spelling by bytes: a word that an encoder of ours has
not kept is another there.
"""

import json
from dataclasses import replace
from shutil import copytree

import diffusers
import pytest
import torch
from calls import SCRIPTS, assert_one_line, call
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from models import random_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.config import load
from ldm.denoisers.embeddings import TimeEmbedding
from ldm.denoisers.unet import UNetConfig
from ldm.files import BrokenFile
from ldm.folders import CONFIG, fingerprint, load_model, shipped_model
from ldm.interchange import autoencoder, from_diffusers, to_diffusers, unet
from ldm.interchange.schedule import OF_TABLES, config_of
from ldm.interchange.text import write_vocabulary
from ldm.run import Run
from ldm.samplers.noise import ImageNoise
from ldm.text.clip import ClipText

CAPTIONS = ["two large red stars left of a blue ring", "a small green square"]
LAYOUT = (
    "data.size=32",
    *(f"autoencoder.{each}" for each in ("width=32", "multipliers=[1,2]", "patch=1", "norm=group", "blocks=1")),
    "autoencoder.attention=true",
    "bottleneck.std=0",
    *(f"text.{each}" for each in ("states=last", "padding=ends", "width=48", "heads=3", "layers=2", "embed_dim=40")),
    "text.context_length=16",
    "text.vision_width=48",
    *(f"denoiser.{each}" for each in ("width=32", "groups=8", "multipliers=[1,2]", "blocks=1", "attention_levels=[0]")),
    *(f"denoiser.{each}=false" for each in ("pooled", "qk_norm", "position", "scale_shift")),
    "schedule=scaled_linear",
    "process.target=eps",
    "times=uniform",
    "sampler=ddim",
    "guidance.interval=[0,1]",
    "guidance.scale=4",
    "sample.steps=10",
)
KINDS = {
    "stable diffusion 1": (),
    "v, the penultimate state": (
        "process.target=v",
        "bottleneck.std=0.5",
        "text.states=penultimate",
        "text.padding=zeros",
        "denoiser.scale_shift=true",
        "denoiser.transformer_depth=2",
    ),
    "x0 on a cosine, heads of one width": (
        "process.target=x0",
        "schedule=cosine",
        "denoiser.attention_levels=[0,1]",
        "denoiser.head_width=16",
    ),
    "without a last signal": ("process.target=v", "schedule.zero_snr=true", "autoencoder.attention=false"),
    "a table of its own": ("schedule=sigmoid",),
}


class Both:
    """A model folder of ours, ``model`` in it, and ``pipeline``, read from what is written of it."""

    def __init__(self, folder, *overrides):
        self.ours, self.theirs = folder / "model", folder / "diffusers"
        random_model(self.ours, CAPTIONS, *LAYOUT, *overrides)
        self.model = load_model(self.ours)
        to_diffusers(self.ours, self.theirs)
        self.pipeline = drawing(self.theirs)


def drawing(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp("both"), *KINDS[request.param])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return Both(tmp_path_factory.mktemp("first"))


def pictures(model, sampling=None):
    """Two pictures (2, 3, H, W) of the first caption."""
    return torch.cat([image for image, _ in model([CAPTIONS[0]] * 2, seed=3, sampling=sampling)])


def their_pictures(pipeline, model, steps=10):
    side = model.size[0] // model.autoencoder.factor
    noise = ImageNoise([3, 4], (model.autoencoder.channels, side, side))()
    drawn = pipeline([CAPTIONS[0]] * 2, latents=noise, num_inference_steps=steps, guidance_scale=4, output_type="pt")
    return drawn.images * 2 - 1


def test_the_pipeline_draws_the_same_pictures(both):
    ours = pictures(both.model)
    assert ours.std() > 0.05 and (ours[0] - ours[1]).abs().max() > 0.05
    torch.testing.assert_close(their_pictures(both.pipeline, both.model), ours, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_autoencoder_is_the_same_both_ways(both):
    image, stage = torch.rand(2, 3, 32, 32) * 2 - 1, both.model.autoencoder
    said = both.pipeline.vae.encode(image).latent_dist
    torch.testing.assert_close(said.mean, stage.encode(image), atol=1e-4, rtol=0)
    logs = stage.bottleneck.moments(stage.features(image))[1] - 2 * stage.std.log()
    torch.testing.assert_close(said.logvar, logs, atol=1e-4, rtol=0)
    latent = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(both.pipeline.vae.decode(latent).sample, stage.decode(latent, clamp=False))


@torch.no_grad()
def test_the_unet_says_the_same_of_the_level_that_is_counted_from_one_here(both):
    x, cond = torch.randn(2, 4, 16, 16), both.model.text(CAPTIONS)
    places = torch.tensor([17, 640])
    theirs = both.pipeline.unet(x, places, encoder_hidden_states=cond.tokens).sample
    ours = both.model.denoiser(x, (places + 1) / 1000, cond)
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_and_states_of_known_words_are_the_same(both):
    limits = {"padding": "max_length", "truncation": True, "max_length": 16}
    ids = both.pipeline.tokenizer(CAPTIONS, return_tensors="pt", **limits).input_ids
    kept = torch.tensor(both.model.text.vocabulary.kept)
    assert torch.equal(ids, kept[both.model.text.tokenize(CAPTIONS)])
    said = both.pipeline.text_encoder(ids)[0]
    torch.testing.assert_close(said, both.model.text(CAPTIONS).tokens, atol=1e-5, rtol=1e-4)


def test_the_levels_are_the_same(both):
    bar = both.pipeline.scheduler.alphas_cumprod.double()
    ours = [both.model.process.schedule.level((i + 1) / 1000).alpha ** 2 for i in range(1000)]
    torch.testing.assert_close(bar, torch.tensor(ours, dtype=torch.float64), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a table of its own"])
def test_what_was_written_reads_back_as_the_same_model_but_for_half_precision(kind, tmp_path):
    both = Both(tmp_path, *KINDS[kind])
    from_diffusers(both.theirs, tmp_path / "back")
    back, sampling = load_model(tmp_path / "back"), both.model.sampling
    assert back.process.schedule.level(0.3) == both.model.process.schedule.level(0.3)
    torch.testing.assert_close(pictures(back, sampling), pictures(both.model), atol=1e-2, rtol=0)


def pipeline_of_diffusers(folder, tokenizer, **unlike):
    """Saves a pipeline of diffusers' own making, ``unlike`` Stable Diffusion 1 where its parts are told to be."""
    torch.manual_seed(1)
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1}
    layout = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        **unlike.get("unet", {}),
    }
    network = UNet2DConditionModel(**blocks, **layout, sample_size=16, norm_num_groups=16, cross_attention_dim=48)
    stage = AutoencoderKL(
        **blocks,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=16,
        sample_size=32,
    )
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2}
    tower = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=16, **unlike.get("tower", {})))
    for part in (network, stage, tower):
        for weight in part.parameters():
            weight.data = (weight + 0.05 * torch.randn_like(weight)).half().float()
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    levels = DDIMScheduler(**table, timestep_spacing="trailing", steps_offset=1, **unlike.get("levels", {}))
    StableDiffusionPipeline(
        vae=stage,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=network,
        scheduler=levels,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, first):
    """The folder of a pipeline of diffusers' own making, with a scale and convolutions beside the latent."""
    return pipeline_of_diffusers(tmp_path_factory.mktemp("foreign") / "pipeline", first.pipeline.tokenizer)


@pytest.mark.parametrize("kind", OF_TABLES)
def test_a_table_whose_betas_a_file_leaves_out_has_those_of_its_class(kind):
    table, _ = config_of({"_class_name": kind}, "scheduler_config.json")
    theirs = getattr(diffusers, kind)()
    assert (table.beta_start, table.beta_end) == (theirs.config.beta_start, theirs.config.beta_end)


def test_a_pipeline_of_diffusers_draws_the_same_here_but_for_half_precision(foreign, tmp_path):
    from_diffusers(foreign, tmp_path / "model")
    model = load_model(tmp_path / "model")
    ours = pictures(model, model.sampling.but("sample.steps=10", "guidance.scale=4"))
    assert model.size == (32, 32) and ours.std() > 0.05
    torch.testing.assert_close(their_pictures(drawing(foreign), model), ours, atol=2e-2, rtol=0)


def test_a_pipeline_of_stable_diffusion_2s_layout_draws_the_same_here_too(first, tmp_path):
    """Heads of one width, linear projections, zeros after the end of text, another activation in the text, v."""
    text = first.model.text
    padded = ClipText(replace(text.architecture, padding="zeros"), text.vocabulary)
    (tmp_path / "tokenizer").mkdir()
    write_vocabulary(padded, tmp_path / "tokenizer")
    source = pipeline_of_diffusers(
        tmp_path / "pipeline",
        CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
        unet={
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        tower={"hidden_act": "gelu"},
        levels={"prediction_type": "v_prediction"},
    )
    assert load_file(source / "unet" / "diffusion_pytorch_model.safetensors")[
        "mid_block.attentions.0.proj_in.weight"
    ].shape == (64, 64)
    from_diffusers(source, tmp_path / "model")
    model, run = load_model(tmp_path / "model"), load(Run, tmp_path / "model" / CONFIG)
    assert (run.denoiser.head_width, run.text.padding, run.process.target) == (16, "zeros", "v")
    ours = pictures(model, model.sampling.but("sample.steps=10", "guidance.scale=4"))
    assert ours.std() > 0.05
    torch.testing.assert_close(their_pictures(drawing(source), model), ours, atol=2e-2, rtol=0)


@torch.no_grad()
def test_the_scale_and_the_convolutions_beside_a_latent_are_taken_up_exactly(foreign):
    theirs = AutoencoderKL.from_pretrained(foreign / "vae")
    config = autoencoder.config_of(json.loads((foreign / "vae" / "config.json").read_text()), "vae")
    ours = config.build(load(Run, None, ["bottleneck=kl"]).bottleneck.build(4))
    autoencoder.fill(ours, theirs.state_dict(), {}, "vae")
    image, latent = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(ours.encode(image), theirs.encode(image).latent_dist.mean * 0.18215, atol=1e-4, rtol=0)
    said = theirs.decode(latent / 0.18215).sample
    torch.testing.assert_close(ours.decode(latent, clamp=False), said, atol=1e-3, rtol=1e-4)


def test_names_of_attention_in_older_files_are_known(foreign):
    config = autoencoder.config_of(json.loads((foreign / "vae" / "config.json").read_text()), "vae")
    theirs = AutoencoderKL.from_pretrained(foreign / "vae").state_dict()
    former = {new: old for old, new in autoencoder.FORMER.items()}

    def renamed(key):
        for new, old in former.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        return key

    older = {renamed(key): value for key, value in theirs.items()}
    assert older.keys() != theirs.keys()
    networks = [config.build(load(Run, None, ["bottleneck=kl"]).bottleneck.build(4)) for _ in range(2)]
    for network, weights in zip(networks, (theirs, older), strict=True):
        autoencoder.fill(network, weights, {}, "vae")
    for new, old in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(new, old)


@pytest.mark.parametrize("by", [1.0, -1.0, 0.25])
def test_a_layer_on_the_time_takes_up_a_shift_of_it(by):
    torch.manual_seed(0)
    before, after = TimeEmbedding(32, 16).double(), TimeEmbedding(32, 16).double()
    after.load_state_dict(before.state_dict())
    after.linear1.weight.data = unet.shift_time(before.linear1.weight.data, by)
    t = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(after(t + by / 1000), before(t), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_flow_is_written_for_the_solver_that_knows_it(tmp_path):
    both = Both(tmp_path, "schedule=flow", "schedule.shift=1", "process.target=flow")
    assert isinstance(both.pipeline.scheduler, DPMSolverMultistepScheduler)
    x, cond, t = torch.randn(2, 4, 16, 16), both.model.text(CAPTIONS), torch.tensor([0.25, 0.75])
    theirs = both.pipeline.unet(x, 1000 * t, encoder_hidden_states=cond.tokens).sample
    torch.testing.assert_close(theirs, both.model.denoiser(x, t, cond), atol=1e-5, rtol=1e-4)
    sampling = both.model.sampling.but("sampler=dpm_solver_pp", "grid=uniform", "sample.steps=40")
    theirs = their_pictures(both.pipeline, both.model, steps=40)
    assert (theirs - pictures(both.model, sampling)).abs().mean() < 0.02  # it rounds times to thousandths


def test_half_precision_is_half_the_size_and_draws_nearly_the_same(first, tmp_path):
    status, said, errors = call("convert.py", "export", first.ours, "--out", tmp_path / "half", "--half")
    assert status == 0, errors
    assert said == f"written to {tmp_path / 'half'}\n"
    whole, half = (
        (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
        for folder in (first.theirs, tmp_path / "half")
    )
    assert half < 0.6 * whole
    drawn = their_pictures(drawing(tmp_path / "half"), first.model)
    torch.testing.assert_close(drawn, pictures(first.model), atol=2e-2, rtol=0)


def moved(foreign, folder):
    """A copy of the pipeline, and the weights of its U-Net, which are not in it."""
    copy = copytree(foreign, folder)
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    file.unlink()
    return copy, weights


def drawn_after_import(source, folder):
    from_diffusers(source, folder)
    model = load_model(folder)
    return pictures(model, model.sampling.but("sample.steps=2"))


def test_shards_are_read_by_their_index_and_no_other_file_is(foreign, tmp_path):
    copy, weights = moved(foreign, tmp_path / "copy")
    keys = sorted(weights)
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for name, held in shards.items():
        save_file({key: weights[key] for key in held}, copy / "unet" / name)
    index = {"weight_map": {key: name for name, held in shards.items() for key in held}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for other in ("non_ema.safetensors", "fp16.safetensors"):
        (copy / "unet" / f"diffusion_pytorch_model.{other}").write_bytes(b"not read")
    again = drawn_after_import(copy, tmp_path / "model")
    assert torch.equal(again, drawn_after_import(foreign, tmp_path / "whole"))


def test_half_precision_files_are_read_where_there_are_no_others(foreign, tmp_path):
    copy, weights = moved(foreign, tmp_path / "copy")
    save_file(
        {key: value.half() for key, value in weights.items()},
        copy / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    again = drawn_after_import(copy, tmp_path / "model")  # the fixture's weights are halves
    torch.testing.assert_close(again, drawn_after_import(foreign, tmp_path / "whole"), atol=1e-2, rtol=0)


def test_what_older_files_have_besides_and_lack_is_no_matter(foreign, tmp_path):
    copy = copytree(foreign, tmp_path / "copy")
    tower, vae = copy / "text_encoder" / "model.safetensors", copy / "vae" / "config.json"
    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(tower).items()}
    save_file(weights | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, tower)
    settings = json.loads(vae.read_text())
    for key in ("scaling_factor", "use_quant_conv", "use_post_quant_conv"):
        del settings[key]
    vae.write_text(json.dumps(settings))
    assert torch.equal(drawn_after_import(copy, tmp_path / "model"), drawn_after_import(foreign, tmp_path / "whole"))


def test_a_convolution_beside_the_latent_that_should_be_there_is_missed(foreign, tmp_path):
    copy = copytree(foreign, tmp_path / "copy")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != "quant_conv.bias"}, file)
    with pytest.raises(BrokenFile, match=r"vae lacks quant_conv.bias"):
        from_diffusers(copy, tmp_path / "model")


def test_an_imported_model_draws_as_the_pipeline_does_by_default_and_trains_on(foreign, tmp_path):
    model = tmp_path / "model"
    status, _, errors = call("convert.py", "import", foreign, "--out", model)
    assert status == 0, errors
    run = load(Run, model / CONFIG)
    assert (run.sample.steps, run.guidance.scale, run.data.size) == (50, 7.5, 32)
    few = ("train_ldm.steps=2", "train_ldm.validate_samples=8", "sample.steps=2")
    data = (f"data.path={SCRIPTS.parent / 'data' / 'sample'}", f"out={tmp_path / 'run'}", "train_ldm.precision=fp32")
    status, said, errors = call("train_ldm.py", "--config", model / CONFIG, f"base={model}", *few, *data)
    assert status == 0, errors
    assert f"the denoiser starts from {model}" in said


def test_a_cache_of_another_padding_is_not_that_of_the_text_encoder(first):
    masked = ClipText(replace(first.model.text.architecture, padding="masked"), first.model.text.vocabulary)
    masked.load_state_dict(first.model.text.state_dict())
    assert fingerprint(masked) != fingerprint(first.model.text)


@pytest.mark.parametrize("out", ["model", "model/diffusers", "."])
def test_a_model_is_not_written_over_itself(out, first):
    names = sorted(path.name for path in first.ours.iterdir())
    result = call("convert.py", "export", first.ours, "--out", first.ours.parent / out)
    assert_one_line(result, "name another place")
    assert sorted(path.name for path in first.ours.iterdir()) == names


def test_the_shipped_model_is_refused_with_all_that_has_no_counterpart(tmp_path):
    result = call("convert.py", "export", shipped_model(), "--out", tmp_path / "out")
    assert_one_line(result, "denoiser.qk_norm=true, denoiser.position=true")
    for setting in ("autoencoder.patch=4", "text.states=words", "text.padding=masked", "schedule.shift=1.5"):
        assert setting in result[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["denoiser.groups=0"], r"denoiser.groups=0 denoiser.width=32"),
        (["denoiser.groups=0", "denoiser.multipliers=[1,1]"], r"denoiser.groups=0"),  # what comes over is twice as wide
        (["denoiser.multipliers=[2,4]"], r"denoiser.multipliers=\[2,4\]"),  # the time is as wide as a first level there
        (["schedule.steps=500"], r"schedule.steps=500"),
        (["autoencoder.decoder_blocks=3"], r"autoencoder.decoder_blocks=3"),
        (["bottleneck=vq"], r"a bottleneck other than kl"),
        (["schedule=vp"], r"schedule=vp"),
        (["schedule=flow", "schedule.shift=1", "process.target=v"], r"process.target=v schedule=flow"),
    ],
)
def test_what_has_no_counterpart_is_named(overrides, says, tmp_path):
    layout = [each for each in LAYOUT if each != "bottleneck.std=0"]  # which a vq does not have
    random_model(tmp_path / "model", CAPTIONS, *layout, *overrides)
    with pytest.raises(ValueError, match=says) as caught:
        to_diffusers(tmp_path / "model", tmp_path / "out")
    assert "qk_norm" not in str(caught.value)  # nor anything else that has one


@pytest.mark.parametrize(
    ("file", "changed", "says"),
    [
        ("model_index.json", {"unet": ["diffusers", "SD3Transformer2DModel"]}, "unet is SD3Transformer2DModel"),
        ("unet/config.json", {"dual_cross_attention": True}, "dual_cross_attention True has no counterpart"),
        (
            "unet/config.json",
            {"attention_head_dim": [5, 10]},
            r"attention_head_dim \[5, 10\] are the heads of levels of",
        ),
        ("unet/config.json", {"attention_head_dim": [2, 4, 8]}, r"attention_head_dim \[2, 4, 8\] are the heads"),
        ("unet/config.json", {"cross_attention_dim": 64}, "cross_attention_dim 64 does not fit the other parts"),
        ("unet/config.json", {"layers_per_block": 2}, "lacks .* weights"),
        ("model_index.json", {"vae": 3}, "vae is missing"),
        ("vae/config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "have no counterpart here"),
        ("vae/config.json", {"block_out_channels": [64, 96]}, "are not multiples of the first"),
        ("vae/config.json", {"latent_channels": 8}, "vae: the weights do not fit config.json"),
        ("vae/config.json", {"scaling_factor": None}, "scaling_factor None is no float"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor 0.0 is no float"),
        ("vae/config.json", {"use_quant_conv": False}, "has the unknown 2 weights"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "num_attention_heads 5"),
        ("text_encoder/config.json", {"max_position_embeddings": 20}, "the weights do not fit config.json"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act relu"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "<pad>"}, "pad_token '<pad>' has no counterpart"),
        ("tokenizer/vocab.json", {"star</w>": 3}, "the vocabulary in .*tokenizer is not CLIP's"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type 'flow_pred"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "num_train_timesteps 500"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name 'FlowM"),
        ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}, "prediction_type"),
    ],
)
def test_a_pipeline_that_is_built_otherwise_is_refused_and_nothing_is_written(file, changed, says, first, tmp_path):
    copy = copytree(first.theirs, tmp_path / "copy")
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changed))
    with pytest.raises(ValueError, match=says):
        from_diffusers(copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_pipeline_ends_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("convert.py", "import", tmp_path / "empty", "--out", tmp_path / "model")
    assert_one_line(result, "has no model_index.json, nor config.json; give the folder of a pipeline")


def test_pickled_weights_are_not_read(first, tmp_path):
    copy = copytree(first.theirs, tmp_path / "copy")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(BrokenFile, match=r"vae has no diffusion_pytorch_model.safetensors; fetch it"):
        from_diffusers(copy, tmp_path / "model")


@pytest.mark.parametrize(
    ("heads", "text_width", "settings"),
    [
        ({"heads": 8}, 768, {}),
        ({"head_width": 64}, 1024, {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}),
    ],
)
def test_every_weight_of_a_unet_of_stable_diffusion_1s_and_2s_size_has_its_name(heads, text_width, settings):
    with torch.device("meta"):
        config = UNetConfig(width=320, multipliers=[1, 2, 4, 4], attention_levels=[0, 1, 2], pooled=False, **heads)
        ours = config.build(channels=4, text_width=text_width, pooled_width=0)
        theirs = UNet2DConditionModel(sample_size=64, cross_attention_dim=text_width, **settings)
    named = {their for each in unet.names(ours).values() for their in each}
    assert named == set(theirs.state_dict())
    assert sum(weight.numel() for weight in ours.parameters()) == sum(weight.numel() for weight in theirs.parameters())


def test_every_weight_of_an_autoencoder_of_stable_diffusion_1s_size_has_its_name():
    run = load(Run, SCRIPTS.parent / "configs" / "shards_unet.yaml")
    with torch.device("meta"):
        ours: nn.Module = run.autoencoder.build(run.bottleneck.build(4))
        theirs = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    beside = {f"{name}.{kind}" for name in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")}
    assert {their for each in autoencoder.names(ours).values() for their in each} | beside == set(theirs.state_dict())


def test_a_tokenizer_is_written_with_all_of_clips_words(first, tmp_path):
    write_vocabulary(first.model.text, tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    assert len(ids) == 49_408 and ids["<|endoftext|>"] == 49_407 and ids["star</w>"] > 512
    assert load(Run, first.ours / CONFIG).text.padding == "ends"
