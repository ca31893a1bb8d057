"""The log of a run: one JSON object a line, and a picture of its curves."""

import json
from pathlib import Path
from typing import Any

from ldm.evaluation.text_use import BAND


class Log:
    """Appends to ``log.jsonl``; on resume, lines of steps that will be made again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(path) if line["step"] <= step] if step else []
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        fresh.replace(path)  # at once: whoever is killed here, or out of disk space, has the old log
        self.path = path

    def write(self, step: int, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line torn by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def minutes_of_steps(lines: list[dict[str, Any]], images: int) -> list[float]:
    """For each of a log's ``lines`` the minutes of training steps before it, a step being of ``images`` samples.

    Those of scores, validations, sample grids and checkpoints do not count.
    """
    minutes, step, found = 0.0, 0, []
    for line in lines:
        if "images_per_second" in line:
            minutes += (line["step"] - step) * images / line["images_per_second"] / 60
            step = line["step"]
        found.append(minutes)
    return found


def draw_curves(log: Path, picture: Path) -> None:
    """Plot every logged figure but those of bands against the step, training and validation of a name together."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot as plt

    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read(log):
        for name, value in line.items():
            if name != "step" and BAND not in name and isinstance(value, int | float):
                curves.setdefault(name, []).append((line["step"], value))
    names = sorted({name.removeprefix("val_") for name in curves})
    columns = min(3, len(names)) or 1
    rows = -(-len(names) // columns) or 1
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for name, axis in zip(names, axes.flat, strict=False):
        for key, style in ((name, "-"), (f"val_{name}", "o-")):
            points = curves.get(key)
            if points:
                axis.plot(
                    *zip(*points, strict=True), style, markersize=3, label="validation" if key != name else "training"
                )
        values = [value for key in (name, f"val_{name}") for _, value in curves.get(key, [])]
        if min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
