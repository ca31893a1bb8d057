"""The denoiser, which makes a whole model of the stages before it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.autoencoders import Autoencoder
from ldm.caching import cache_a_few, cache_latents, cache_pays
from ldm.config import load, to_dict
from ldm.data.shapes import ShapesConfig
from ldm.diffusion.few_steps import DenoisingConfig
from ldm.evaluation.prompts import CATEGORIES, TRAINING_SEED, Prompt, prompt_set
from ldm.files import BrokenFile, check_folder, fill_weights, read_tensors
from ldm.folders import (
    CONFIG,
    build_denoiser,
    fingerprint,
    latent_fingerprint,
    load_autoencoder,
    save_model,
    unclip_fingerprint,
)
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.stages.frozen import frozen_stages, frozen_unclip
from ldm.stages.settings import as_given
from ldm.stages.stage import own_folder, resumes, run_training
from ldm.stages.teaching import check_objective, objective_of, taught_by
from ldm.training.denoiser import DenoiserTask
from ldm.training.engine import processes
from ldm.training.sharding import check_processes
from ldm.training.start import PLAIN, Start


def train_ldm(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train the denoiser on the latents of the run's autoencoder; returns the folder of the whole model."""
    config, folder = run.train_ldm, own_folder(run, "model")
    check_objective(run)
    prompts, best_by_loss = scored_prompts(run), False
    if config.score_every:
        own_folder(run, "model-best")
        # what is taught by a model, or by itself, goes away from this loss
        best_by_loss = not prompts and isinstance(run.objective, DenoisingConfig)
        if not prompts:
            kept = "model-best is the model of the lowest held-out loss" if best_by_loss else "no model-best is kept"
            print(f"no prompt of the benchmark is of this run's world: {kept}")
    if config.shard:
        check_processes(device)
    run.check_denoiser()
    torch.manual_seed(config.seed)
    train_data, val = run.data.build("train"), run.data.build("val")
    run, autoencoder, text = frozen_stages(run, device, stand_in=start.scratch is not None)
    unclip = None
    if run.unclip.decoder:
        run, unclip = frozen_unclip(run, text, device)
    network = build_denoiser(run, autoencoder, text).to(device)
    run.check_size(autoencoder.factor * getattr(network, "multiple", 1))
    if run.base and not resumes(run, DenoiserTask.name):
        start_denoiser(run, network, autoencoder)
    size = (run.data.size, run.data.size)
    process = run.process.build(run.schedule.build())
    model = TextToImage(network, autoencoder, text, process, run.sampling, size, unclip)
    objective = objective_of(run, model)
    cached = cache_pays(run, train_data, processes(device).num_processes)
    if cached and start.scratch:
        train_data = cache_a_few(run, autoencoder, text, train_data, start.scratch)
    elif cached:
        with processes(device).main_process_first():  # one process writes, the others read
            train_data = cache_latents(run, autoencoder, text, train_data)
    elif run.cache.use == "auto" and not getattr(train_data, "fixed", True):
        print("no latent cache: flipped, randomly cropped or differently captioned, a picture is another each time")

    def save(net: nn.Module, best: bool) -> None:
        save_model(replace(model, denoiser=net), run, folder.with_name("model-best") if best else folder)

    task = DenoiserTask(
        model,
        objective,
        train_data,
        val,
        config,
        save,
        text_dropout=run.process.text_dropout,
        words_dropout=run.unclip.words_dropout,
        prompts=prompts,
        best_by_loss=best_by_loss,
    )
    made_from = {
        "autoencoder": latent_fingerprint(autoencoder),
        "text encoder": fingerprint(text),
        "schedule": str(run.schedule),
        "process": str(run.process),
        "weight": str(run.weight),
        "distribution of times": str(run.times),
        **taught_by(run),
        **({} if unclip is None else {"embedding of the picture": unclip_fingerprint(unclip)}),
    }
    run_training(task, config, run, device, made_from, start)
    return folder


def start_denoiser(run: Run, network: nn.Module, autoencoder: Autoencoder) -> None:
    """Load the denoiser of ``run.base``, which must be of the same latents.

    It is warned of another target or schedule, and where only one of the two is told unCLIP's embedding.

    Raises:
        ValueError: the base is no whole model, or its denoiser is of another shape or of another autoencoder.
    """
    base = Path(run.base)
    check_folder(base)
    if latent_fingerprint(load_autoencoder(base / "autoencoder")[0]) != latent_fingerprint(autoencoder):
        raise ValueError(f"base {base} has another autoencoder: its denoiser knows other latents; use the base's own")
    made_by, file = load(Run, base / CONFIG), base / "denoiser.safetensors"
    held = read_tensors(file)
    try:
        fill_weights(network, held, file)
    except BrokenFile as error:  # of other shapes
        own, asked = (to_dict(each)["denoiser"] for each in (made_by, run))
        others = " ".join(f"denoiser.{key}={as_given(value)}" for key, value in own.items() if value != asked.get(key))
        if not others:
            raise
        raise ValueError(f"base {base} has another denoiser than this run asks for; its own: {others}") from error
    print(f"the denoiser starts from {base}")
    known = _known_settings(made_by)
    if known != _known_settings(run):
        own = " ".join(f"{key}={as_given(value)}" for key, value in known.items())
        print(f"warning: base {base} has another target, schedule or condition; its own: {own}", file=sys.stderr)


def _known_settings(run: Run) -> dict[str, Any]:
    """The settings, by name, that settle what a denoiser says at which noise level, and what it is told."""
    settings = to_dict(run)
    seen = {f"process.{name}": settings["process"][name] for name in ("target", "unit_input", "learned_variance")}
    seen["unclip.decoder"] = run.unclip.decoder
    in_no_weight = ("heads", "head_width", "groups")
    seen |= {f"denoiser.{name}": getattr(run.denoiser, name, 0) for name in in_no_weight}
    return seen | {f"schedule.{name}": value for name, value in settings["schedule"].items()}


def scored_prompts(run: Run) -> list[Prompt]:
    """The benchmark's prompts that pictures like the run's own can fulfil: none where it does not train on shapes."""
    config = run.train_ldm
    if not config.score_every or not isinstance(run.data, ShapesConfig):
        return []
    prompts = prompt_set(-(-config.score_prompts // len(CATEGORIES)), TRAINING_SEED)
    return [prompt for prompt in prompts if run.data.holds(prompt.statement)]
