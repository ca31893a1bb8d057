"""The stages of a run, put together: what each training script and the cache script build and where they write it.

    <out>/autoencoder/   the first stage          <out>/cache/      latents and text states
    <out>/text/          the text encoder         <out>/model/      everything that txt2img needs
    <out>/picture/       CLIP's other tower       <out>/unclip/     unCLIP's prior, with that tower
    <out>/classifier/    of noised latents, for classifier guidance
    <out>/prior/         of the codes of the first stage
    <out>/control/       a ControlNet of a whole model
    <out>/model-best/    the model at its best score, where it is scored while it trains
    <out>/training/<stage>/  log, sample grids, curves, and the checkpoints that a run resumes from

A stage that the run has not trained is taken from the base model, or else from the shipped one, where the configuration
asks for the same network, and it is said so.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import IterableDataset

from ldm.autoencoders import Autoencoder
from ldm.autoencoders.codes import num_codes
from ldm.caching import cache_a_few, cache_latents, cache_pays
from ldm.config import to_yaml
from ldm.data.shapes import ShapesConfig
from ldm.denoisers.classifier import Classifier
from ldm.denoisers.control import ControlNet
from ldm.evaluation.prompts import CATEGORIES, TRAINING_SEED, Prompt, prompt_set
from ldm.files import check_ours
from ldm.folders import (
    build_denoiser,
    fingerprint,
    latent_fingerprint,
    load_text,
    model_fingerprints,
    save_autoencoder,
    save_classifier,
    save_control,
    save_model,
    save_picture,
    save_prior,
    save_text,
    save_unclip,
    unclip_fingerprint,
    unet_of,
)
from ldm.parts import (
    check_joined,
    frozen_autoencoder,
    frozen_clip,
    frozen_model,
    frozen_stages,
    frozen_unclip,
    join_decoder,
    start_autoencoder,
    start_denoiser,
)
from ldm.pipeline import TextToImage
from ldm.priors import CodePrior
from ldm.run import Run
from ldm.teaching import check_objective, check_plain, objective_of, taught_by
from ldm.text.clip import ClipText
from ldm.text.picture import ClipPicture
from ldm.text.vocabulary import Vocabulary
from ldm.training.adversary import Adversary
from ldm.training.autoencoder import AutoencoderTask
from ldm.training.checkpoint import newest
from ldm.training.classifier import ClassifierTask
from ldm.training.clip import ClipTask
from ldm.training.control import ControlTask
from ldm.training.denoiser import DenoiserTask
from ldm.training.engine import processes
from ldm.training.loop import Trainer
from ldm.training.optim import TrainConfig
from ldm.training.preflight import preflight
from ldm.training.prior import PriorTask, codes_of
from ldm.training.sharding import check_processes
from ldm.training.start import PLAIN, UNREAD, Start
from ldm.training.task import Rival, Task
from ldm.training.unclip import UnclipTask, embeddings_of
from ldm.unclip import EmbeddingPrior, Unclip

VOCABULARY_SAMPLES = 20_000  # captions that the text encoder's vocabulary is taken from


def train_autoencoder(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train the first stage; returns its folder."""
    run.check_autoencoder()
    if run.decoder_only:
        check_joined(run)
    config, folder = run.train_autoencoder, _own(run, "autoencoder")
    torch.manual_seed(config.seed)  # the first weights, too, follow from the configuration
    network = run.autoencoder.build(run.bottleneck.build(run.autoencoder.channels))
    if run.base and not _resumes(run, AutoencoderTask.name):
        start_autoencoder(run, network)
    if run.decoder_only:
        network.freeze_latents()
    data = run.data.build("train"), run.data.build("val")

    def save(net: Autoencoder) -> None:
        save_autoencoder(net, run, folder)

    made_from = {"norm": run.autoencoder.norm}  # weights of either norm would load
    adversary = Adversary(run.adversarial, config) if run.adversarial.weight else None
    if adversary is not None:
        made_from["discriminator"] = f"width {run.adversarial.width}, layers {run.adversarial.layers}"
    task = AutoencoderTask(network, run.reconstruction, run.robustness, *data, config, save, adversary)
    _train(task, config, run, device, made_from, start, adversary)
    if run.decoder_only and not start.scratch and processes(device).is_main_process:
        join_decoder(run, folder)
    return folder


def train_clip(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a CLIP of the run's own sizes on image-caption pairs; returns the folder of its text encoder."""
    config, folder, other = run.train_clip, _own(run, "text"), _own(run, "picture")
    torch.manual_seed(config.seed)
    data = run.data.build("train"), run.data.build("val")
    processes(device)
    [vocabulary] = broadcast_object_list([Vocabulary.of(data[0].captions(VOCABULARY_SAMPLES))])  # streams differ
    print(f"a vocabulary of {len(vocabulary)} tokens")

    def save(text: ClipText, picture: ClipPicture) -> None:
        save_text(text, folder)
        save_picture(picture, fingerprint(load_text(folder)), other)

    task = ClipTask(run.text, vocabulary, run.data.size, *data, config, save)
    _train(task, config, run, device, {}, start)
    return folder


def train_ldm(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train the denoiser on the latents of the run's autoencoder; returns the folder of the whole model."""
    config, folder = run.train_ldm, _own(run, "model")
    check_objective(run)
    if config.score_every:
        _own(run, "model-best")
    if config.shard:
        check_processes(device)
    run.check_denoiser()
    torch.manual_seed(config.seed)
    train_data, val = run.data.build("train"), run.data.build("val")
    run, autoencoder, text = frozen_stages(run, device)
    unclip = None
    if run.unclip.decoder:
        run, unclip = frozen_unclip(run, text, device)
    network = build_denoiser(run, autoencoder, text).to(device)
    run.check_size(autoencoder.factor * getattr(network, "multiple", 1))
    if run.base and not _resumes(run, DenoiserTask.name):
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
        prompts=scored_prompts(run),
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
    _train(task, config, run, device, made_from, start)
    return folder


def train_classifier(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a classifier of the noised latents of the run's autoencoder; returns its folder."""
    config, folder = run.train_classifier, _own(run, "classifier")
    torch.manual_seed(config.seed)
    run, autoencoder = frozen_autoencoder(run, device)
    network = run.classifier.build(autoencoder.channels)
    data, schedule = (run.data.build("train"), run.data.build("val")), run.schedule.build()
    made_from = {"autoencoder": latent_fingerprint(autoencoder), "schedule": str(run.schedule)}

    def save(net: Classifier) -> None:
        save_classifier(net, run, made_from["autoencoder"], folder)

    task = ClassifierTask(network, autoencoder, schedule, *data, config, save)
    _train(task, config, run, device, {**made_from, "list of words": str(run.classifier.words)}, start)
    return folder


def train_prior(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a prior over the codes of the run's autoencoder; returns its folder.

    Raises:
        ValueError: the autoencoder has no codes, or too many.
    """
    config, folder = run.train_prior, _own(run, "prior")
    torch.manual_seed(config.seed)
    num_codes(run.bottleneck.build(run.autoencoder.channels))  # refused before one is looked for
    run, autoencoder = frozen_autoencoder(run, device)
    network = run.prior.build(num_codes(autoencoder.bottleneck))
    pictures = _taken_first("the codes", run.prior.pictures, config, start)
    train = codes_of(autoencoder, run.data.build("train"), pictures, config)
    val = codes_of(autoencoder, run.data.build("val"), config.validate_samples, config)
    made_from = {"autoencoder": latent_fingerprint(autoencoder), "number of pictures": str(run.prior.pictures)}

    def save(net: CodePrior) -> None:
        save_prior(net, run, made_from["autoencoder"], folder)

    task = PriorTask(network, autoencoder, train, val, config, save)
    _train(task, config, run, device, made_from, start)
    return folder


def train_unclip(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train unCLIP's prior of the run's own CLIP; returns its folder.

    Raises:
        ValueError: the run has trained no CLIP, or not of pictures of this size, or its data is a stream.
    """
    config, folder = run.train_unclip, _own(run, "unclip")
    torch.manual_seed(config.seed)
    text, picture = frozen_clip(run, device)
    prior = run.unclip.build(picture.architecture.output_dim, text).to(device)
    unclip = Unclip(picture, prior, run.unclip.steps, run.unclip.scale)
    data = run.data.build("train")
    if isinstance(data, IterableDataset):
        raise ValueError("a stream has no first pictures whose embeddings could be kept; use data.name=shards")
    pictures = _taken_first("CLIP's embeddings", run.unclip.pictures, config, start)
    train = embeddings_of(picture, data, pictures, config)
    prior.measure(train.embeddings)
    dropout = run.process.text_dropout
    made_from = {
        "text encoder": fingerprint(text),
        "picture tower": fingerprint(picture),
        "number of pictures": str(run.unclip.pictures),
        "dropout of text": str(dropout),
    }

    def save(net: EmbeddingPrior) -> None:
        save_unclip(unclip._replace(prior=net), run, made_from["text encoder"], folder)

    task = UnclipTask(unclip, text, train, run.data.build("val"), config, save, text_dropout=dropout)
    _train(task, config, run, device, made_from, start)
    return folder


def train_control(run: Run, device: torch.device, start: Start = PLAIN) -> Path:
    """Train a ControlNet of the run's own model, or else of its base or of the shipped one; returns its folder.

    Raises:
        ValueError: the model's denoiser is no U-Net, or it was trained by another objective.
    """
    config, folder = run.train_control, _own(run, "control")
    torch.manual_seed(config.seed)
    run, model = frozen_model(run, device)
    run.check_denoiser()
    check_plain(run)
    run.check_size(model.autoencoder.factor * unet_of(model).multiple)
    network = ControlNet(unet_of(model), model.autoencoder.factor).to(device)
    fingerprints = model_fingerprints(model)
    made_from = {
        **fingerprints,
        "hint": run.control.hint,
        "process": str(run.process),
        "weight": str(run.weight),
        "distribution of times": str(run.times),
    }

    def save(net: ControlNet) -> None:
        save_control(net, run, fingerprints, folder)

    data, dropout = (run.data.build("train"), run.data.build("val")), run.process.text_dropout
    objective, hint = objective_of(run, model), run.control.hint
    task = ControlTask(model, network, objective, hint, *data, config, save, text_dropout=dropout)
    _train(task, config, run, device, made_from, start)
    return folder


def _taken_first(what: str, pictures: int, config: TrainConfig, start: Start) -> int:
    """Of how many ``pictures`` a training takes ``what`` before it begins: in a dry run as many as a step has."""
    if not start.scratch:
        return pictures
    print(f"a run would first take {what} of {pictures} pictures, which is not in the time below")
    return min(pictures, config.batch * config.accumulate)


def scored_prompts(run: Run) -> list[Prompt]:
    """The benchmark's prompts that pictures like the run's own can fulfil: none where it does not train on shapes."""
    config = run.train_ldm
    if not config.score_every or not isinstance(run.data, ShapesConfig):
        return []
    prompts = prompt_set(-(-config.score_prompts // len(CATEGORIES)), TRAINING_SEED)
    return [prompt for prompt in prompts if run.data.holds(prompt.statement)]


def _train(
    task: Task,
    config: TrainConfig,
    run: Run,
    device: torch.device,
    made_from: dict[str, str],
    start: Start,
    rival: Rival | None = None,
) -> None:
    trained = sum(parameter.numel() for parameter in task.network.parameters() if parameter.requires_grad)
    print(f"{task.name}: {trained / 1e6:.2f} M parameters")
    others = {name for name, value in vars(run).items() if isinstance(value, TrainConfig) and value is not config}
    make = partial(
        Trainer,
        task,
        config,
        described=to_yaml(run),
        made_from=made_from,
        device=device,
        rival=rival,
        start=start,
        unread=UNREAD[task.name] | others,
    )
    if start.scratch:
        print(preflight(make, start.scratch, Path(run.out), device))
    else:
        make(_training(run, task.name)).run()


def _own(run: Run, stage: str) -> Path:
    """The folder that a stage is exported to; ValueError, before anything is trained, where it is somebody else's."""
    folder = Path(run.out) / stage
    check_ours(folder)
    return folder


def _resumes(run: Run, stage: str) -> bool:
    """Whether a whole checkpoint of ``stage`` is there to go on from; the trainer warns of broken ones."""
    return newest(_training(run, stage) / "state", warn=lambda _: None) is not None


def _training(run: Run, stage: str) -> Path:
    return Path(run.out) / "training" / stage
