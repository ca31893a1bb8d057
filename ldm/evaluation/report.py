"""The report of an evaluation: ``report.json`` with every figure, and ``report.html``, a page that needs nothing else.

``report.json`` is what the page is made from: a table of numbers, and for each picture its prompt, what was read in it
and whether that is right.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.data.scene import Object, Scene
from ldm.evaluation.benchmark import Marked
from ldm.evaluation.prompts import Prompt
from ldm.evaluation.reader import UNKNOWN
from ldm.evaluation.score import Score, Share
from ldm.files import whole_folder
from ldm.pipeline import SampleConfig

TEMPLATE = "report.html"
SHOWN = 6  # pictures of each category on the page, right and wrong ones each


def check_out(folder: Path) -> None:
    """Refuse a folder that holds anything but a report, which a new one would replace.

    Raises:
        ValueError: it holds other files, or is a file itself.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TEMPLATE).is_file():
        raise ValueError(f"--out {folder} holds other files, which a report would replace; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")


def model_figures(folder: Path, sampling: SampleConfig, seed: int, precision: str) -> dict[str, Any]:
    """What was scored and how it drew."""
    digest = sha256((folder / "manifest.json").read_bytes()).hexdigest()[:10]
    drawn = {name: value for name, value in asdict(sampling).items() if name != "batch"}
    return {"model": folder.resolve().name, "hash": digest, **drawn, "seed": seed, "precision": precision}


def share_figures(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"right": share.hits, "of": share.total, "share": share.value, "low": low, "high": high}


def score_figures(score: Score) -> dict[str, Any]:
    """The score as plain numbers: overall, by category and by attribute, each with its 95 % interval."""
    return {
        "overall": share_figures(score.overall),
        "categories": {name: share_figures(share) for name, share in score.categories.items()},
        "attributes": {name: share_figures(share) for name, share in score.attributes.items()},
    }


def describe(scene: Scene) -> str:
    """What was read in a picture, in words: "navy: small red star at 12, 40; ..."."""
    things = [f"{_name(thing)} at {thing.x:.0f}, {thing.y:.0f}" for thing in scene.objects]
    return f"{scene.background}: {'; '.join(things) or 'nothing'}"


def _name(thing: Object) -> str:
    color = "unclear colour" if thing.color == UNKNOWN else thing.color
    return f"{color}, unclear shape" if thing.shape == UNKNOWN else f"{thing.size} {color} {thing.shape}"


def picture_figures(prompts: list[Prompt], marked: Marked) -> list[dict[str, Any]]:
    """One entry for each picture, in order."""
    return [
        {
            "category": prompt.category,
            "prompt": prompt.text,
            "right": verdict.right,
            "wrong": [name for name, (hits, total) in verdict.attributes.items() if hits < total],
            "read": describe(scene),
        }
        for prompt, verdict, scene in zip(prompts, marked.verdicts, marked.scenes, strict=True)
    ]


def write_report(folder: Path, figures: dict[str, Any], pictures: NDArray[np.uint8], curves: dict[str, str]) -> None:
    """Write the report into ``folder``, in place of one that is there, with every picture as a PNG under ``images/``.

    ``figures`` is what ``report.json`` holds, ``pictures`` (N, S, S, 3) those of its list, ``curves`` pictures in SVG
    by their titles.
    """
    from jinja2 import Environment, select_autoescape  # which takes long to import

    page = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    source = (files("ldm") / "assets" / TEMPLATE).read_text()
    shown = [*_shown(figures["pictures"], pictures)]
    with whole_folder(folder) as staged:
        (staged / "images").mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(staged / "images" / f"{number:05d}.png")
        (staged / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
        (staged / TEMPLATE).write_text(page.from_string(source).render(shown=shown, curves=curves, **figures))


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


def curve(lines: Mapping[str, Mapping[float, Point]], label: str, value: str) -> str:
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
