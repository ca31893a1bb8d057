"""The field's general metrics of one evaluation, as tables for its report; what is not at hand is noted, not fatal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.loader import first_batches
from ldm.data.transforms import to_bytes
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import Pictures
from ldm.evaluation.clip_score import Clip, clip_score, load_open_clip, load_own_clip
from ldm.evaluation.distances import Inception, distances, features
from ldm.evaluation.reconstruction import Lpips
from ldm.pipeline import TextToImage
from ldm.run import Run

LEAST = 2  # pictures of a set that can be compared with another


@dataclass(frozen=True)
class Sources:
    """Where the networks of the metrics come from; what is left out is looked for on this machine."""

    inception: Path | None = None  # weights file of FID's and KID's Inception
    lpips: Path | None = None  # weights file of LPIPS' AlexNet
    clip: str = ""  # name of open_clip's, or name:tag
    clip_weights: Path | None = None  # file in place of the tag's
    clip_run: Path | None = None  # folder of a run that trained a CLIP of its own


Tables = dict[str, dict[str, Any]]


def general(
    pictures: Pictures,
    captions: list[str],
    *,
    sources: Sources,
    reference: Pictures | None = None,
    model: TextToImage | None = None,
) -> tuple[Tables, list[str]]:
    """Tables of figures by title, and a note on each metric that could not be had.

    ``reference`` (N, S, S, 3) are true pictures: FID and KID compare with them, and the autoencoder of ``model`` is
    measured on them.
    """
    tables: Tables = {}
    notes: list[str] = []

    def attempt(title: str, measure: Callable[[], dict[str, Any]]) -> None:
        try:
            tables[title] = measure()
        except (ValueError, OSError) as error:
            notes.append(f"{title} left out: {error}")

    if reference is not None:
        attempt("FID and KID", lambda: _distances(pictures, reference, sources))
    attempt("CLIP score", lambda: _clip_score(pictures, captions, sources))
    if reference is not None and model is not None:
        attempt("Autoencoder", lambda: _autoencoder(model, reference, sources, notes))
    return tables, notes


def validation_pictures(run: Run, count: int) -> Pictures:
    """The first ``count`` held-out pictures (N, S, S, 3) of a run's own data.

    Raises:
        ValueError: its data is not on this machine, or a set of fewer than 2.
    """
    batches = first_batches(run.data.build("val"), 64, count)
    parts = [to_bytes(batch.image) for batch in batches]
    if sum(map(len, parts)) < LEAST:
        raise ValueError(f"the run's data has {sum(map(len, parts))} held-out pictures; at least {LEAST} are needed")
    return np.concatenate(parts)


def _distances(pictures: Pictures, reference: Pictures, sources: Sources) -> dict[str, Any]:
    network = Inception(sources.inception).eval()
    return distances(features(pictures, network), features(reference, network))


def _clip_score(pictures: Pictures, captions: list[str], sources: Sources) -> dict[str, Any]:
    """The score, and that of shuffled captions, without which it says little."""
    clip = _clip(sources)
    order = np.random.default_rng(0).permutation(len(captions))
    shuffled = clip_score(clip, pictures, [captions[other] for other in order])
    return {**clip_score(clip, pictures, captions), "clip_score of shuffled captions": shuffled["clip_score"]}


def _clip(sources: Sources) -> Clip:
    if sources.clip:
        name, _, tag = sources.clip.partition(":")
        return load_open_clip(name, tag, weights=sources.clip_weights)
    if sources.clip_run:
        return load_own_clip(sources.clip_run)
    raise ValueError(
        "no CLIP is named; --clip ViT-B-32:openai, or --clip-run with the folder of a run that trained one"
    )


def _autoencoder(model: TextToImage, reference: Pictures, sources: Sources, notes: list[str]) -> dict[str, Any]:
    networks: dict[str, Any] = {}
    for name, load in (("lpips", lambda: Lpips(sources.lpips)), ("inception", lambda: Inception(sources.inception))):
        try:
            networks[name] = load().eval()
        except ValueError as error:
            notes.append(f"{name} of the autoencoder left out: {error}")
    found = autoencoder_report(model.autoencoder, reference, **networks).figures()
    own = found.pop("bottleneck")
    return {**found, **own}
