"""What a run's denoiser is trained to say: its objective, with the teacher that some objectives have."""

from pathlib import Path

import torch

from ldm.config import load, name_in, to_dict
from ldm.diffusion.few_steps import OBJECTIVES, ConsistencyConfig, DenoisingConfig, ProgressiveConfig, Teacher
from ldm.diffusion.loss import DenoisingLoss
from ldm.files import check_folder
from ldm.folders import CONFIG, digest, load_model, unclip_fingerprint
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.samplers.ddim import DDIMConfig

PROBE = "two large red stars left of a blue ring"
ALL_ANEW = 100.0  # eta of ddim from which on next to no noise is kept from step to step


def objective_of(run: Run, model: TextToImage) -> DenoisingLoss:
    """The loss by which ``run`` trains the denoiser of ``model``; a teacher is the base, guided as its folder says.

    Raises:
        ValueError: the base reads text in another way.
    """
    teacher = None
    if run.objective.needs_teacher:
        base = load_model(Path(run.base), model.device)
        if not _read_alike(base, model):
            raise ValueError(f"base {run.base} reads text by another encoder than this run's; use the base's own")
        if _embeddings(base) != _embeddings(model):
            raise ValueError(
                f"base {run.base} is told another embedding of pictures than this run's; use the base's own"
            )
        teacher = Teacher(base.denoiser, base.process, base.sampling.guidance, model.condition([""]))
    examples = run.objective.build(
        network=model.denoiser,
        process=model.process,
        grids=lambda steps: run.grid(model.process.schedule, steps),
        drawn=run.sample.steps,
        trained=run.train_ldm.steps,
        teacher=teacher,
    )
    return DenoisingLoss(
        model.process,
        run.times.build(model.process.schedule),
        run.weight,
        offset_noise=run.process.offset_noise,
        input_perturbation=run.process.input_perturbation,
        examples=examples,
        huber=run.objective.huber,
    )


@torch.no_grad()
def _read_alike(one: TextToImage, other: TextToImage) -> bool:
    """Whether the text encoders of both say the same."""
    a, b = (model.text([PROBE]).tokens for model in (one, other))
    return a.shape == b.shape and torch.equal(a, b)


def _embeddings(model: TextToImage) -> str:
    return "" if model.unclip is None else unclip_fingerprint(model.unclip)


def check_objective(run: Run) -> None:
    """Raise ValueError, before anything is trained, where settings of ``run`` do not go with its objective."""
    objective, sampler = run.objective, run.sampler
    if isinstance(objective, DenoisingConfig):
        return
    if objective.needs_teacher:
        _check_teacher(run)
    if isinstance(objective, ProgressiveConfig):
        if sampler != DDIMConfig():
            raise ValueError(
                "objective=progressive learns steps of ddim without noise, and this run draws in another way; set "
                "sampler=ddim"
            )
        objective.ladder(lambda steps: run.grid(run.schedule.build(), steps), run.sample.steps)
    if isinstance(objective, ConsistencyConfig):
        anew = isinstance(sampler, DDIMConfig) and (sampler.eta >= ALL_ANEW or run.sample.steps == 1)
        if not anew:
            raise ValueError(
                "objective=consistency learns to say the end of the path from anywhere on it, and this run draws in "
                "another way; set sampler=ddim sampler.eta=1000, or sampler=ddim sample.steps=1"
            )
        run.grid(run.schedule.build(), objective.last)  # refused here, not where the training has come to it
        if run.train_ldm.shard:
            raise ValueError("objective=consistency asks the network itself, whole; set train_ldm.shard=false")
    for name in ("learned_variance", "offset_noise", "input_perturbation"):
        if value := getattr(run.process, name):
            raise ValueError(f"process.{name} {value} has no part in this objective; set it to {type(value)()}")


def _check_teacher(run: Run) -> None:
    """Raise ValueError where the base of ``run`` cannot teach it."""
    if not run.base:
        raise ValueError("this objective learns from a model that is trained already; give base=MODEL")
    if run.guidance.scale != 1:
        raise ValueError(
            f"guidance.scale {run.guidance.scale:g}: this objective learns what its base says with guidance, which "
            "would be guided twice; set guidance.scale=1"
        )
    check_folder(Path(run.base))
    base = load(Run, Path(run.base) / CONFIG)
    ours, theirs = (to_dict(each)["schedule"] for each in (run, base))
    if ours != theirs:
        known = " ".join(f"schedule.{key}={value}" for key, value in theirs.items())
        raise ValueError(f"base {run.base} knows another noise schedule than this run asks for; its own: {known}")
    for name, value in (("guidance.momentum", base.guidance.momentum), ("sample.clip", base.sample.clip)):
        if value:
            raise ValueError(f"base {run.base} draws with {name} {value}, which no student learns; set it to 0 there")
    if isinstance(base.objective, ConsistencyConfig):
        raise ValueError(
            f"base {run.base} says the end of the path and not a step of it, which is what this objective learns; "
            "give the model that it was trained on, or another of objective=denoising"
        )
    if isinstance(base.objective, ProgressiveConfig):
        taught = run.sample.steps * run.objective.substeps if isinstance(run.objective, ProgressiveConfig) else 0
        if taught != base.sample.steps:
            raise ValueError(
                f"base {run.base} knows {base.sample.steps} steps and no others; learn from it by "
                f"objective=progressive with sample.steps and objective.substeps whose product is {base.sample.steps}"
            )


def check_plain(run: Run) -> None:
    """Raise ValueError where a model of another objective would be trained on as any other."""
    if not isinstance(run.objective, DenoisingConfig):
        objective = name_in(OBJECTIVES, run.objective)
        raise ValueError(f"the model was trained by objective={objective}, and this by denoising; build on its base")


def taught_by(run: Run) -> dict[str, str]:
    """What a training with another objective than DDPM's is made from, besides what every training is."""
    objective = run.objective
    if isinstance(objective, DenoisingConfig):
        return {}
    made_from = {"objective": str(objective), "grid": str(run.grid)}
    if isinstance(objective, ProgressiveConfig):
        made_from["number of steps"] = str(run.sample.steps)
    if isinstance(objective, ConsistencyConfig) and objective.first < objective.last:
        made_from["length of the training, by which its grids grow"] = str(run.train_ldm.steps)
    if objective.needs_teacher:
        made_from["teacher"] = digest(Path(run.base))
    return made_from
