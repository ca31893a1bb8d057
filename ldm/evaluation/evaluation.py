"""One evaluation put together: a model, or the pictures of another program, scored and measured into a ``Report``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from ldm.autoencoders import Autoencoder
from ldm.data.latents import Latents
from ldm.data.loader import first_batches
from ldm.data.shapes import ShapesConfig
from ldm.evaluation.benchmark import Pictures, ceiling, drawn_by, floor, mark, through, true_pictures
from ldm.evaluation.general import Found, Networks, general, of_autoencoder
from ldm.evaluation.likelihood import BOUND_SAMPLES, likelihoods
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.report import Report
from ldm.evaluation.score import Score, tally
from ldm.evaluation.text_use import text_use
from ldm.pipeline import Steer, TextToImage
from ldm.run import Run
from ldm.types import Condition

TEXT_USE_SAMPLES = 512  # held-out captions and pictures
LIKELIHOOD = "Likelihood of held-out latents, bits per dimension"


@dataclass(frozen=True)
class Drawer:
    """Draws prompts with ``model``, picture i from ``seed`` + i, with a progress bar."""

    model: TextToImage
    seed: int = 0
    precision: str = "fp32"
    steer: Steer | None = None

    def __call__(self, prompts: Sequence[Prompt | str], title: str, *overrides: str) -> Pictures:
        """The pictures (N, S, S, 3); ``overrides`` take the place of the model's own settings (``Sampling.but``)."""
        sampling = self.model.sampling.but(*overrides)
        with tqdm(total=len(prompts) * sampling.sample.steps, desc=title, unit="step", dynamic_ncols=True) as bar:
            return drawn_by(
                self.model,
                prompts,
                sampling=sampling,
                seed=self.seed,
                precision=self.precision,
                progress=bar.update,
                steer=self.steer,
            )


def score_pictures(prompts: list[Prompt], pictures: Pictures, what: dict[str, Any]) -> Report:
    """The report of pictures (N, S, S, 3), whoever drew them; ``what`` says whose they are."""
    marked = mark(prompts, pictures)
    return Report(what, prompts, marked, floor(prompts, marked.scenes))


def score_model(draw: Drawer, run: Run, prompts: list[Prompt], what: dict[str, Any]) -> Report:
    """The report of what a model draws for the prompts, with its autoencoder's ceiling; ``run`` is its own."""
    began = time.perf_counter()
    pictures = draw(prompts, "drawing")
    seconds = time.perf_counter() - began
    report = score_pictures(prompts, pictures, what)
    return replace(
        report,
        ceiling=ceiling(prompts, draw.model.autoencoder, pictures.shape[1]),
        seconds_per_image=seconds / len(prompts),
        device=_device(draw.model.device),
        notes=_beyond_its_world(run, report),
    )


def score_autoencoder(autoencoder: Autoencoder, run: Run, prompts: list[Prompt], what: dict[str, Any]) -> Report:
    """The report of a first stage alone, its ceiling in the score's place; ``run`` is its own."""
    report = score_pictures(prompts, through(autoencoder, true_pictures(prompts, run.data.size)), what)
    note = "These are true pictures that went through the autoencoder: the score is the ceiling of a model with it."
    return replace(report, notes=[note, *_beyond_its_world(run, report)])


def with_sweeps(report: Report, draw: Drawer, prompts: list[Prompt], sweeps: dict[str, list[float]]) -> Report:
    """The report with a score on ``prompts`` for each value of each setting that is swept."""

    def score(setting: str) -> Score:
        return mark(prompts, draw(prompts, setting, setting)).score

    scores = {key: {value: score(f"{key}={value}") for value in sorted(values)} for key, values in sweeps.items()}
    return replace(report, sweeps=scores)


def with_held_out(report: Report, model: TextToImage, run: Run, *, likelihood: bool = False) -> Report:
    """The report with the validation losses by caption, and the ``likelihood``, where the run's data is at hand."""
    try:
        batches = list(first_batches(run.data.build("val"), model.sampling.sample.batch, TEXT_USE_SAMPLES))
    except (ValueError, OSError) as error:
        note = f"Whether the text is used was left out: the model's own data is not here ({error})."
        return replace(report, notes=[*report.notes, note])
    held_out = [model.encode(batch) for batch in tqdm(batches, desc="held-out data", unit="batch")]
    report = replace(report, text_use=text_use(model, held_out, [batch.captions for batch in batches]))
    if not likelihood:
        return report
    few = held_out[: -(-BOUND_SAMPLES // len(held_out[0].latent))]
    together = Latents(torch.cat([part.latent for part in few]), Condition.cat([part.cond for part in few]))
    found = likelihoods(model, together)
    return replace(report, tables={**report.tables, LIKELIHOOD: found.figures}, bound_terms=found.terms)


def with_general(
    report: Report, networks: Networks, *, reference: Pictures | None = None, autoencoder: Autoencoder | None = None
) -> Report:
    """The report with tables of the general metrics; ``reference`` is true pictures of the prompts if left out."""
    pictures = report.marked.pictures
    if reference is None:
        reference = true_pictures(report.prompts, pictures.shape[1])
    captions = [prompt.text for prompt in report.prompts]
    return _with(report, general(pictures, captions, reference=reference, networks=networks, autoencoder=autoencoder))


def with_autoencoder(
    report: Report, autoencoder: Autoencoder, networks: Networks, *, reference: Pictures | None = None
) -> Report:
    """The report with what ``autoencoder`` does to ``reference``, true pictures of the prompts if left out."""
    if reference is None:
        reference = true_pictures(report.prompts, report.marked.pictures.shape[1])
    return _with(report, of_autoencoder(autoencoder, reference, networks))


def _with(report: Report, found: Found) -> Report:
    return replace(report, tables={**report.tables, **found.tables}, notes=[*report.notes, *found.notes])


def _beyond_its_world(run: Run, report: Report) -> list[str]:
    """A note where the model was trained on less than the benchmark asks for, or on something else."""
    if not isinstance(run.data, ShapesConfig):
        return ["The model was not trained on the shapes world: the score says nothing of it."]
    pairs = zip(report.prompts, report.marked.verdicts, strict=True)
    held = [(prompt, verdict) for prompt, verdict in pairs if run.data.holds(prompt.statement)]
    if len(held) == len(report.prompts):
        return []
    own = tally([prompt for prompt, _ in held], [verdict for _, verdict in held]).overall
    return [
        f"The model's own training pictures can show what {len(held)} of the {len(report.prompts)} prompts say; "
        f"of these {100 * own.value:.1f} % are right."
    ]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
