"""The field's general metrics of one evaluation, as tables for its report; what is not at hand is noted, not fatal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.autoencoders import Autoencoder
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import AT_ONCE, Pictures, shuffled
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


Figures = dict[str, Any]
Tables = dict[str, Figures]


@dataclass
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

    def add(self, title: str, measure: Callable[[], Figures]) -> None:
        """A table of what ``measure`` gives; a note in its place where what it needs is not at hand."""
        figures = self.attempt(title, measure)
        if figures is not None:
            self.tables[title] = figures

    def add_autoencoder(
        self, autoencoder: Autoencoder, reference: Pictures, lpips: Path | None, rfid: Any, *, batch: int = AT_ONCE
    ) -> None:
        """A table of what ``autoencoder`` does to ``reference``; ``rfid`` is an Inception, or None."""

        def measure() -> Figures:
            network = self.attempt("LPIPS", lambda: Lpips(lpips).eval().to(autoencoder.mean.device))
            report = autoencoder_report(autoencoder, reference, lpips=network, inception=rfid, batch=batch)
            figures = report.figures()
            own: Figures = figures.pop("bottleneck")
            return {**figures, **own}

        self.add("Autoencoder", measure)


def in_words(tables: Tables, notes: list[str]) -> Iterator[str]:
    """A line for each table, of its numbers and, where it has an rFID, the FID in that; and one for each note."""
    for title, figures in tables.items():
        numbers = {name: value.get("fid") if isinstance(value, dict) else value for name, value in figures.items()}
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, int | float)]
        yield f"{title}: {', '.join(shown)}"
    yield from (f"note: {note}" for note in notes)


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
        found.add("FID and KID", lambda: distances(features(pictures, inception), features(reference, inception)))
    found.add("CLIP score", lambda: _clip_score(_clip(sources, device), pictures, captions))
    if autoencoder is not None:
        found.add_autoencoder(autoencoder, reference, sources.lpips, inception)
    return found


def of_autoencoder(autoencoder: Autoencoder, reference: Pictures, sources: Sources, *, batch: int = AT_ONCE) -> Found:
    """What ``autoencoder`` does to the pictures ``reference`` (N, S, S, 3), of which ``batch`` pass at once."""
    found = Found()
    inception = found.attempt("rFID", lambda: Inception(sources.inception).eval().to(autoencoder.mean.device))
    found.add_autoencoder(autoencoder, reference, sources.lpips, inception, batch=batch)
    return found


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
