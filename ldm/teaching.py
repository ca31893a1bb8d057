"""What a run's denoiser is trained to say: its objective, with the teacher that some objectives have."""

from pathlib import Path

import torch

from ldm.diffusion.few_steps import ConsistencyConfig, DenoisingConfig, ProgressiveConfig, Teacher
from ldm.diffusion.loss import DenoisingLoss
from ldm.folders import check_same, digest, latent_fingerprint, load_model
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.samplers.ddim import DDIMConfig

PROBE = "two large red stars left of a blue ring"


def objective_of(run: Run, model: TextToImage) -> DenoisingLoss:
    """The loss by which ``run`` trains the denoiser of ``model``; a teacher is the base, guided as its folder says.

    Raises:
        ValueError: the base knows other latents, noise levels or text, or the grid does not suit the objective.
    """
    teacher = None
    if run.objective.needs_teacher:
        base = load_model(Path(run.base), model.device)
        if not _read_alike(base, model):
            raise ValueError(f"base {run.base} reads text by another encoder than this run's; use the base's own")
        check_same(base, latent_fingerprint(model.autoencoder), model.process.schedule, "the network that is to learn")
        teacher = Teacher(base.denoiser, base.process, base.sampling.guidance, model.condition([""]))
    ask = run.objective.build(
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
        ask=ask,
        huber=run.objective.huber,
    )


@torch.no_grad()
def _read_alike(one: TextToImage, other: TextToImage) -> bool:
    """Whether the text encoders of both say the same."""
    a, b = (model.condition([PROBE]).tokens for model in (one, other))
    return a.shape == b.shape and torch.equal(a, b)


def check_objective(run: Run) -> None:
    """Raise ValueError, before anything is trained, where settings of ``run`` do not go with its objective."""
    objective = run.objective
    if isinstance(objective, DenoisingConfig):
        return
    if objective.needs_teacher and not run.base:
        raise ValueError("this objective learns from a model that is trained already; give base=MODEL")
    if objective.needs_teacher and run.guidance.scale != 1:
        raise ValueError(
            f"guidance.scale {run.guidance.scale:g}: this objective learns what its base says with guidance, which "
            "would be guided twice; set guidance.scale=1"
        )
    if isinstance(objective, ProgressiveConfig) and run.sampler != DDIMConfig():
        raise ValueError(
            "objective=progressive learns steps of ddim without noise, and this run draws in another way; set "
            "sampler=ddim"
        )
    if isinstance(objective, ConsistencyConfig) and run.train_ldm.shard:
        raise ValueError("objective=consistency keeps an average beside the network, whole; set train_ldm.shard=false")
    for name in ("learned_variance", "offset_noise", "input_perturbation"):
        if value := getattr(run.process, name):
            raise ValueError(f"process.{name} {value} has no part in this objective; set it to {type(value)()}")


def taught_by(run: Run) -> dict[str, str]:
    """What a training with another objective than DDPM's is made from, besides what every training is."""
    objective = run.objective
    if isinstance(objective, DenoisingConfig):
        return {}
    made_from = {"objective": str(objective), "grid": str(run.grid)}
    if isinstance(objective, ProgressiveConfig):
        made_from["number of steps"] = str(run.sample.steps)
    if objective.needs_teacher:
        made_from["teacher"] = digest(Path(run.base))
    return made_from
