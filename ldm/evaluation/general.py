"""The field's general metrics of one evaluation, as tables for its report; what is not at hand is noted, not fatal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.autoencoders import Autoencoder
from ldm.evaluation.autoencoder import autoencoder_report
from ldm.evaluation.benchmark import AT_ONCE, Pictures, shuffled
from ldm.evaluation.clip_score import Clip, clip_score, load_open_clip, load_own_clip
from ldm.evaluation.distances import Inception, distances, features
from ldm.evaluation.reconstruction import LPIPS_SIDE, Lpips


@dataclass(frozen=True)
class Sources:
    """Where the networks of the metrics come from; what is left out is looked for on this machine."""

    inception: Path | None = None  # weights file of FID's and KID's Inception
    lpips: Path | None = None  # weights file of LPIPS' AlexNet
    clip: str = ""  # name of open_clip's, or name:tag
    clip_weights: Path | None = None  # file in place of the tag's
    clip_run: Path | None = None  # folder of a run that trained a CLIP of its own

    def load(self, *wanted: str) -> "Networks":
        """Those of the networks ``wanted``, by their names in ``Networks``, that are at hand.

        Raises:
            ValueError: one is named here, and cannot be had.
        """
        named = {"inception": self.inception, "lpips": self.lpips, "clip": self.clip or self.clip_run}
        build: dict[str, Callable[[], Any]] = {
            "inception": lambda: Inception(self.inception).eval(),
            "lpips": lambda: Lpips(self.lpips).eval(),
            "clip": lambda: _clip(self),
        }
        found = Networks()
        for name in wanted:
            try:
                setattr(found, name, build[name]())
            except (ValueError, OSError) as error:
                if named[name]:
                    raise
                found.missing[name] = str(error)
        return found


@dataclass
class Networks:
    """The networks of the metrics that are at hand, and of those that are not why."""

    inception: nn.Module | None = None
    lpips: nn.Module | None = None
    clip: Clip | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def move(self, device: torch.device) -> None:
        for network in (self.inception, self.lpips, self.clip.model if self.clip else None):
            if network is not None:
                network.to(device)


Figures = dict[str, Any]
Tables = dict[str, Figures]


@dataclass
class Found:
    """Tables of figures by title, and a note on each metric that could not be had."""

    tables: Tables = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, title: str, measure: Callable[[], Figures]) -> None:
        """A table of what ``measure`` gives; a note in its place where that cannot be measured."""
        try:
            self.tables[title] = measure()
        except (ValueError, OSError) as error:
            self.notes.append(f"{title} left out: {error}")

    def leave_out(self, networks: Networks, **titles: str) -> None:
        """A note of each of the ``networks`` that is missing, with the title of what it measures."""
        self.notes += [f"{titles[name]} left out: {why}" for name, why in networks.missing.items() if name in titles]

    def add_autoencoder(
        self, autoencoder: Autoencoder, reference: Pictures, networks: Networks, *, batch: int = AT_ONCE
    ) -> None:
        """A table of what ``autoencoder`` does to ``reference``."""

        lpips, side = networks.lpips, reference.shape[1]
        if lpips is not None and side < LPIPS_SIDE:
            self.notes.append(f"LPIPS left out: pictures of {side} pixels, and it needs {LPIPS_SIDE}")
            lpips = None

        def measure() -> Figures:
            report = autoencoder_report(autoencoder, reference, lpips=lpips, inception=networks.inception, batch=batch)
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
    networks: Networks,
    autoencoder: Autoencoder | None = None,
) -> Found:
    """FID, KID and the CLIP score, and what ``autoencoder`` does to ``reference`` where one is given.

    ``reference`` (N, S, S, 3) are true pictures, with which FID and KID compare. The networks work on the
    autoencoder's device.
    """
    networks.move(autoencoder.mean.device if autoencoder is not None else torch.device("cpu"))
    found, inception, clip = Found(), networks.inception, networks.clip
    found.leave_out(networks, inception="FID and KID", clip="CLIP score", lpips="LPIPS")
    if inception is not None:
        found.add("FID and KID", lambda: distances(features(pictures, inception), features(reference, inception)))
    if clip is not None:
        found.add("CLIP score", lambda: _clip_score(clip, pictures, captions))
    if autoencoder is not None:
        found.add_autoencoder(autoencoder, reference, networks)
    return found


def of_autoencoder(autoencoder: Autoencoder, reference: Pictures, networks: Networks, *, batch: int = AT_ONCE) -> Found:
    """What ``autoencoder`` does to the pictures ``reference`` (N, S, S, 3), of which ``batch`` pass at once."""
    networks.move(autoencoder.mean.device)
    found = Found()
    found.leave_out(networks, inception="rFID", lpips="LPIPS")
    found.add_autoencoder(autoencoder, reference, networks, batch=batch)
    return found


def _clip_score(clip: Clip, pictures: Pictures, captions: list[str]) -> dict[str, Any]:
    """The score, and that of shuffled captions, without which it says little."""
    found = clip_score(clip, pictures, captions)
    if len(captions) < 2:
        return found
    others = [captions[other] for other in shuffled(len(captions))]
    return {**found, "clip_score of shuffled captions": clip_score(clip, pictures, others)["clip_score"]}


def _clip(sources: Sources) -> Clip:
    if sources.clip:
        name, _, tag = sources.clip.partition(":")
        return load_open_clip(name, tag, weights=sources.clip_weights)
    if sources.clip_run:
        return load_own_clip(sources.clip_run)
    raise ValueError("no CLIP is named; use --clip ViT-B-32:openai, or --clip-run with a run that trained its own")
