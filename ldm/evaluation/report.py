"""The report of an evaluation: ``report.json`` with every figure, and ``report.html``, a page that needs nothing else.

Legend: N pictures, S side.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.data.scene import Object, Scene
from ldm.evaluation.benchmark import Marked
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.reader import UNKNOWN
from ldm.evaluation.score import Score, Share
from ldm.evaluation.text_use import TextUse
from ldm.files import MANIFEST, whole_folder

PAGE, FIGURES = "report.html", "report.json"
SWEEP_PROMPTS = "prompts of a sweep"  # named so in ``what`` where they are others than those of the score
SHOWN = 6  # pictures of each category on the page, right and wrong ones each


@dataclass(frozen=True)
class Report:
    """All that an evaluation found; what it did not look at is None or empty."""

    what: dict[str, Any]  # what was scored, and how it drew
    prompts: list[Prompt]
    marked: Marked
    floor: Score | None  # None for a single prompt, which no other picture can be judged by
    ceiling: Score | None = None
    seconds_per_image: float | None = None
    device: str = ""
    sweeps: dict[str, dict[float, Score]] = field(default_factory=dict)  # scores by setting and value
    text_use: TextUse | None = None
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the general metrics, by title
    bound_terms: dict[str, list[float]] = field(default_factory=dict)  # L_{T-1} to L_1 in bits, by what was told
    notes: list[str] = field(default_factory=list)  # what the reader must know

    def figures(self) -> dict[str, Any]:
        """Everything as plain values: what ``report.json`` holds, and what the page is made from."""
        return {
            "what": self.what,
            "score": score_figures(self.marked.score),
            "ceiling": self.ceiling and score_figures(self.ceiling),
            "floor": self.floor and score_figures(self.floor),
            "seconds_per_image": self.seconds_per_image,
            "device": self.device,
            "sweeps": {
                key: {f"{value:g}": score_figures(score) for value, score in scores.items()}
                for key, scores in self.sweeps.items()
            },
            "text_use": self.text_use and asdict(self.text_use),
            "tables": self.tables,
            "bound_terms": self.bound_terms,
            "notes": self.notes,
            "pictures": [
                {
                    "category": prompt.category,
                    "prompt": prompt.text,
                    "right": verdict.right,
                    "wrong": [name for name, (hits, total) in verdict.attributes.items() if hits < total],
                    "read": describe(scene),
                }
                for prompt, verdict, scene in zip(self.prompts, self.marked.verdicts, self.marked.scenes, strict=True)
            ],
        }

    def curves(self) -> dict[str, str]:
        """Pictures in SVG by their titles: of each sweep, of the bound's terms and of the losses by caption."""
        drawn = {}
        for key, scores in self.sweeps.items():
            shares = {value: score.overall for value, score in scores.items()}
            line: dict[float, Point] = {value: (share.value, *share.interval) for value, share in shares.items()}
            drawn_for = "other prompts" if SWEEP_PROMPTS in self.what else "the prompts"
            title = f"score against {key} ({next(iter(shares.values())).total} pictures each, of {drawn_for})"
            drawn[title] = curve({"score": line}, key, "share of right pictures")
        if self.bound_terms:
            steps = {name: dict(enumerate(reversed(terms), start=1)) for name, terms in self.bound_terms.items()}
            title = "the variational bound: the KL of each step, even in log SNR"
            drawn[title] = curve(steps, "step, 1 the nearest to data", "bits per dimension")
        if self.text_use is not None:
            drawn["validation loss: is the text used?"] = curve(self.text_use.lines(), "time: 0 data, 1 noise", "loss")
        return drawn


def check_out(folder: Path, named: Set[str] = frozenset({PAGE, FIGURES})) -> Path:
    """The folder of a report, absolute; it may be new, empty, or hold a report that will be replaced.

    A report is what has the ``named`` files.

    Raises:
        ValueError: it is a file, or holds anything that is not a report's.
        OSError: nothing can be written there.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")
    if folder.is_dir():
        held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        try:
            ours = {*json.loads((folder / MANIFEST).read_text(encoding="utf-8")), MANIFEST}
        except (OSError, ValueError):
            ours = set()
        if (held and not named <= ours) or held - ours:
            raise ValueError(f"--out {folder} holds other files, which a report would replace; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder.parent):
        pass  # a place that takes no file is noticed here, before anything is drawn
    return folder


def write_report(folder: Path, report: Report) -> None:
    """Write the report into ``folder``, in place of one that is there, with all pictures as PNG under ``images/``."""
    from jinja2 import Environment, select_autoescape  # which takes long to import

    page = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    source = (files("ldm") / "assets" / PAGE).read_text(encoding="utf-8")
    figures, pictures = report.figures(), report.marked.pictures
    shown = [*_shown(figures["pictures"], pictures)]
    with whole_folder(folder) as staged:
        (staged / "images").mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(staged / "images" / f"{number:05d}.png")
        (staged / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        text = page.from_string(source).render(shown=shown, curves=report.curves(), **figures)
        (staged / PAGE).write_text(text, encoding="utf-8")


def share_figures(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"right": share.hits, "of": share.total, "share": share.value, "low": low, "high": high}


def score_figures(score: Score) -> dict[str, Any]:
    """The score as plain numbers. Attributes have no interval: those of one picture do not vary independently."""
    return {
        "overall": share_figures(score.overall),
        "categories": {name: share_figures(share) for name, share in score.categories.items()},
        "attributes": {
            name: {"right": share.hits, "of": share.total, "share": share.value}
            for name, share in score.attributes.items()
        },
    }


def describe(scene: Scene) -> str:
    """What was read in a picture, in words: "navy: small red star at 12, 40; ..."."""
    things = [f"{_name(thing)} at {thing.x:.0f}, {thing.y:.0f}" for thing in scene.objects]
    return f"{scene.background}: {'; '.join(things) or 'nothing'}"


def _name(thing: Object) -> str:
    color = "unclear colour" if thing.color == UNKNOWN else thing.color
    return f"{color}, unclear shape" if thing.shape == UNKNOWN else f"{thing.size} {color} {thing.shape}"


def _shown(entries: list[dict[str, Any]], pictures: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    """For each category some pictures that are right and some that are not, as data addresses."""
    for category in dict.fromkeys(entry["category"] for entry in entries):
        mine = [
            (entry, picture) for entry, picture in zip(entries, pictures, strict=True) if entry["category"] == category
        ]
        rows = {
            name: [{**entry, "image": _png(picture)} for entry, picture in mine if entry["right"] is right][:SHOWN]
            for name, right in (("right", True), ("wrong", False))
        }
        yield {"category": category, **rows}


def _png(picture: NDArray[np.uint8]) -> str:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, format="PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


Point = float | tuple[float, float, float]  # y, or y with the ends of its interval


def curve(lines: Mapping[str, Mapping[int, Point] | Mapping[float, Point]], label: str, value: str) -> str:
    """An SVG of ``lines`` {name: {x: point}}; ``label`` and ``value`` name the axes."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.2))
    for name, line in lines.items():
        ys, lows, highs = zip(*(y if isinstance(y, tuple) else (y, y, y) for y in line.values()), strict=True)
        axis.plot([*line], ys, "o-", markersize=4, label=name)
        axis.fill_between([*line], lows, highs, alpha=0.15)
    axis.set(xlabel=label, ylabel=value)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    figure.tight_layout()
    held = io.StringIO()
    figure.savefig(held, format="svg")
    plt.close(figure)
    return held.getvalue()[held.getvalue().index("<svg") :]
