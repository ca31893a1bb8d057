"""The field's general metrics of one evaluation, as tables for its report; what is not at hand is noted, not fatal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.autoencoders import Autoencoder
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import Pictures, shuffled
from ldm.evaluation.clip_score import Clip, clip_score, load_open_clip, load_own_clip
from ldm.evaluation.distances import Inception, distances, features
from ldm.evaluation.reconstruction import Lpips

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


@dataclass(frozen=True)
class Found:
    """Tables of figures by title, and a note on each metric that could not be had."""

    tables: Tables = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def attempt(self, title: str, measure: Callable[[], T]) -> T | None:
        """What ``measure`` gives; None, and a note, where what it needs is not at hand."""
        try:
            return measure()
        except (ValueError, OSError) as error:
            self.notes.append(f"{title} left out: {error}")
            return None


def general(
    pictures: Pictures,
    captions: list[str],
    *,
    reference: Pictures,
    sources: Sources,
    autoencoder: Autoencoder | None = None,
) -> Found:
    """FID, KID and the CLIP score, and what ``autoencoder`` does to ``reference`` where one is given.

    ``reference`` (N, S, S, 3) are true pictures, with which FID and KID compare. The networks work on the
    autoencoder's device.
    """
    device = autoencoder.mean.device if autoencoder is not None else torch.device("cpu")
    found = Found()
    inception = found.attempt("FID and KID", lambda: Inception(sources.inception).eval().to(device))
    if inception is not None:
        distance = found.attempt(
            "FID and KID", lambda: distances(features(pictures, inception), features(reference, inception))
        )
        found.tables.update({"FID and KID": distance} if distance else {})
    score = found.attempt("CLIP score", lambda: _clip_score(_clip(sources, device), pictures, captions))
    found.tables.update({"CLIP score": score} if score else {})
    if autoencoder is not None:
        _add_autoencoder(found, autoencoder, reference, sources, inception)
    return found


def of_autoencoder(autoencoder: Autoencoder, reference: Pictures, sources: Sources) -> Found:
    """What ``autoencoder`` does to the pictures ``reference`` (N, S, S, 3)."""
    found = Found()
    inception = found.attempt("rFID", lambda: Inception(sources.inception).eval().to(autoencoder.mean.device))
    _add_autoencoder(found, autoencoder, reference, sources, inception)
    return found


def _add_autoencoder(
    found: Found, autoencoder: Autoencoder, reference: Pictures, sources: Sources, inception: Inception | None
) -> None:
    lpips = found.attempt("LPIPS", lambda: Lpips(sources.lpips).eval().to(autoencoder.mean.device))
    figures = found.attempt(
        "Autoencoder",
        lambda: autoencoder_report(autoencoder, reference, lpips=lpips, inception=inception).figures(),
    )
    if figures is not None:
        own = figures.pop("bottleneck")
        found.tables["Autoencoder"] = {**figures, **own}


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
