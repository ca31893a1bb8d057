"""The field's general metrics of one evaluation, as tables for its report; what is not at hand is noted, not fatal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import Pictures, shuffled
from ldm.evaluation.clip_score import Clip, clip_score, load_open_clip, load_own_clip
from ldm.evaluation.distances import Inception, distances, features
from ldm.evaluation.reconstruction import Lpips
from ldm.pipeline import TextToImage

T = TypeVar("T")


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
    pictures: Pictures, captions: list[str], *, reference: Pictures, sources: Sources, model: TextToImage | None = None
) -> tuple[Tables, list[str]]:
    """Tables of figures by title, and a note on each metric that could not be had.

    ``reference`` (N, S, S, 3) are true pictures: FID and KID compare with them, and the autoencoder of ``model`` is
    measured on them. The networks work on the model's device.
    """
    device = model.device if model is not None else torch.device("cpu")
    tables: Tables = {}
    notes: list[str] = []

    def attempt(title: str, measure: Callable[[], T]) -> T | None:
        try:
            return measure()
        except (ValueError, OSError) as error:
            notes.append(f"{title} left out: {error}")
            return None

    inception = attempt("FID and KID", lambda: Inception(sources.inception).eval().to(device))
    if inception is not None:
        distance = attempt(
            "FID and KID", lambda: distances(features(pictures, inception), features(reference, inception))
        )
        tables |= {"FID and KID": distance} if distance else {}
    score = attempt("CLIP score", lambda: _clip_score(_clip(sources, device), pictures, captions))
    tables |= {"CLIP score": score} if score else {}
    if model is not None:
        lpips = attempt("LPIPS", lambda: Lpips(sources.lpips).eval().to(device))
        found = attempt(
            "Autoencoder",
            lambda: autoencoder_report(model.autoencoder, reference, lpips=lpips, inception=inception).figures(),
        )
        if found is not None:
            own = found.pop("bottleneck")
            tables["Autoencoder"] = {**found, **own}
    return tables, notes


def _clip_score(clip: Clip, pictures: Pictures, captions: list[str]) -> dict[str, Any]:
    """The score, and that of shuffled captions, without which it says little."""
    found = clip_score(clip, pictures, captions)
    if len(captions) < 2:
        return found
    others = [captions[other] for other in shuffled(len(captions))]
    return {**found, "clip_score of shuffled captions": clip_score(clip, pictures, others)["clip_score"]}


def _clip(sources: Sources, device: torch.device) -> Clip:
    if sources.clip:
        name, _, tag = sources.clip.partition(":")
        return load_open_clip(name, tag, weights=sources.clip_weights, device=device)
    if sources.clip_run:
        return load_own_clip(sources.clip_run, device)
    raise ValueError("no CLIP is named; use --clip ViT-B-32:openai, or --clip-run with a run that trained its own")
