"""Score a model, or pictures that any program made, on the exact benchmark of the shapes world.

Writes report.html, a page to look at, and report.json with the same figures into a folder. What the figures mean and
when to trust them is told in docs/evaluation.md.
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ldm.cli import add_sampling, device_of, given_sampling, one_line_errors
from ldm.config import load
from ldm.data.loader import first_batches
from ldm.evaluation.benchmark import Pictures, ceiling, drawn_by, floor, mark, read_folder
from ldm.evaluation.general import Sources, general, validation_pictures
from ldm.evaluation.prompts import Prompt, prompt_set, read_prompts
from ldm.evaluation.report import check_out, curve, model_figures, picture_figures, score_figures, write_report
from ldm.evaluation.text_use import text_use
from ldm.folders import CONFIG, load_model, shipped_model
from ldm.pipeline import SampleConfig, TextToImage
from ldm.run import Run

TEXT_USE_SAMPLES = 512  # held-out captions and pictures
SWEPT = ("scale", "steps", "eta")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to score")
    what.add_argument("model", nargs="?", type=Path, help="a model folder; the shipped model if left out")
    what.add_argument(
        "--prompts-per-category", type=int, default=50, metavar="N", help="50 if left out, of 10 categories"
    )
    what.add_argument("--prompts", type=Path, metavar="FILE", help="prompts of your own, one on each line")
    what.add_argument("--images", type=Path, metavar="DIR", help="pictures of another program, one a prompt, by name")
    what.add_argument("--write-prompts", type=Path, metavar="FILE", help="write the prompts for --images and leave")
    what.add_argument("--sweep", action="append", default=[], metavar="scale=1,2,4", help=f"any of {', '.join(SWEPT)}")
    what.add_argument("--sweep-prompts", type=int, default=10, metavar="N", help="a category at each value; 10")
    what.add_argument("--seed", type=int, default=0, help="of the first picture, 0 if left out; the next count up by 1")
    more = parser.add_argument_group("the field's other metrics (extra: pip install -e '.[eval]')")
    more.add_argument("--general", action="store_true", help="also FID, KID, CLIP score and the autoencoder's figures")
    more.add_argument(
        "--reference", type=Path, metavar="DIR", help="true pictures; the run's own held-out ones if left out"
    )
    more.add_argument("--inception", type=Path, metavar="FILE", help="weights of FID's and KID's network")
    more.add_argument("--lpips", type=Path, metavar="FILE", help="weights of LPIPS' AlexNet")
    more.add_argument("--clip", default="", metavar="NAME[:TAG]", help="open_clip's model of the CLIP score")
    more.add_argument("--clip-weights", type=Path, metavar="FILE", help="its weights, in place of the tag's")
    more.add_argument("--clip-run", type=Path, metavar="RUN", help="a run whose own CLIP gives the CLIP score")
    add_sampling(parser.add_argument_group("how to draw (the model's own settings where left out)"))
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"), help="folder of the report")
    return parser.parse_args()


def read_sweep(text: str) -> tuple[str, list[Any]]:
    """("scale", [1.0, 2.0]) of "scale=1,2", each value checked."""
    key, _, listed = text.partition("=")
    if key not in SWEPT:
        raise ValueError(f"--sweep {text}: one of {', '.join(SWEPT)} can be swept, as in --sweep scale=1,2,4")
    kind = int if key == "steps" else float
    try:
        values = [kind(value) for value in listed.split(",")]
    except ValueError as error:
        raise ValueError(f"--sweep {text}: '{listed}' is no list of numbers; write e.g. {key}=1,2,4") from error
    for value in values:
        replace(SampleConfig(), **{key: value})
    return key, values


def draw(
    model: TextToImage, prompts: list[Prompt], sampling: SampleConfig, args: argparse.Namespace, title: str
) -> Pictures:
    """The pictures (N, S, S, 3) with a progress bar."""
    with tqdm(total=len(prompts) * sampling.steps, desc=title, unit="step", dynamic_ncols=True) as bar:
        return drawn_by(
            model, prompts, sampling=sampling, seed=args.seed, precision=args.precision or "fp32", progress=bar.update
        )


def main() -> None:
    args = parse()
    given, sweeps = given_sampling(args), [read_sweep(text) for text in args.sweep]
    prompts = read_prompts(args.prompts) if args.prompts else prompt_set(args.prompts_per_category)
    if args.write_prompts:
        args.write_prompts.write_text("".join(f"{prompt.text}\n" for prompt in prompts))
        print(f"{len(prompts)} prompts in {args.write_prompts}")
        return
    check_out(args.out)
    figures: dict[str, Any] = {"what": {}, "notes": [], "tables": {}, "ceiling": None, "timing": None, "sweeps": {}}
    curves: dict[str, str] = {}
    model: TextToImage | None = None
    if args.images:
        if args.model or given or sweeps:
            raise ValueError("--images are scored as they are; leave out the model, --sweep and the options of drawing")
        pictures = read_folder(args.images, len(prompts))
        figures["what"] = {"model": str(args.images)}
    else:
        folder = args.model or shipped_model()
        model = load_model(folder, device_of(args.device))
        model.sampling = replace(model.sampling, **given)
        figures["what"] = model_figures(folder, model.sampling, args.seed, args.precision or "fp32")
        began = time.perf_counter()
        pictures = draw(model, prompts, model.sampling, args, "drawing")
        figures["timing"] = timing(time.perf_counter() - began, len(prompts), model.device)
        figures["ceiling"] = score_figures(ceiling(prompts, model.autoencoder, pictures.shape[1]))
        text_use_figures(folder, model, figures, curves)
        few = prompt_set(args.sweep_prompts) if sweeps and not args.prompts else prompts
        for key, values in sweeps:
            line = {}
            for value in values:
                sampling = replace(model.sampling, **{key: value})
                line[value] = score_figures(mark(few, draw(model, few, sampling, args, f"{key} {value:g}")).score)
            figures["sweeps"][key] = line
            title = f"score against {key} ({len(few)} pictures each)"
            curves[title] = curve({"score": points(line)}, key, "share of right pictures")
    marked = mark(prompts, pictures)
    figures |= {
        "score": score_figures(marked.score),
        "floor": score_figures(floor(prompts, marked.scenes)),
        "pictures": picture_figures(prompts, marked),
    }
    if args.general:
        add_general(args, model, prompts, pictures, figures)
    write_report(args.out, figures, pictures, curves)
    tell(figures)
    print(f"report: {args.out / 'report.html'}")


def text_use_figures(folder: Path, model: TextToImage, figures: dict[str, Any], curves: dict[str, str]) -> None:
    """Add the validation losses with the true, another and no caption, where the run's data is at hand."""
    run = load(Run, folder / CONFIG)
    try:
        held_out = [model.encode(batch) for batch in first_batches(run.data.build("val"), 64, TEXT_USE_SAMPLES)]
    except (ValueError, OSError) as error:
        figures["notes"].append(f"Whether the text is used was left out: the model's own data is not here ({error}).")
        return
    use = text_use(model, held_out)
    figures["text_use"] = asdict(use)
    curves["validation loss: is the text used?"] = curve(
        {f"{name} caption": dict(zip(use.times, values, strict=True)) for name, values in asdict(use).items()},
        "time: 0 data, 1 noise",
        "loss",
    )


def add_general(
    args: argparse.Namespace,
    model: TextToImage | None,
    prompts: list[Prompt],
    pictures: Pictures,
    figures: dict[str, Any],
) -> None:
    """Add the tables of the general metrics, and notes on those that could not be had."""
    reference = None
    try:
        if args.reference:
            reference = read_folder(args.reference)
        elif model is not None:
            run = load(Run, (args.model or shipped_model()) / CONFIG)
            reference = validation_pictures(run, len(pictures))
    except (ValueError, OSError) as error:
        figures["notes"].append(f"what needs true pictures is left out: {error}")
    sources = Sources(args.inception, args.lpips, args.clip, args.clip_weights, args.clip_run)
    captions = [prompt.text for prompt in prompts]
    tables, notes = general(pictures, captions, sources=sources, reference=reference, model=model)
    figures["tables"] |= tables
    figures["notes"] += notes


def points(line: dict[float, dict[str, Any]]) -> dict[float, tuple[float, float, float]]:
    """(share, low, high) of each value of a sweep."""
    return {x: tuple(score["overall"][part] for part in ("share", "low", "high")) for x, score in line.items()}


def timing(seconds: float, count: int, device: torch.device) -> dict[str, Any]:
    """How long the drawing took, and on what."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"seconds": seconds, "seconds_per_image": seconds / count, "device": name}


def tell(figures: dict[str, Any]) -> None:
    """Print the score, by category and by attribute."""
    for part in ("categories", "attributes"):
        for name, share in figures["score"][part].items():
            print(f"{name:>18} {100 * share['share']:5.1f} %")
    overall = figures["score"]["overall"]
    line = f"{100 * overall['share']:.1f} % of {overall['of']} pictures right"
    line += f" (95 % interval {100 * overall['low']:.1f} to {100 * overall['high']:.1f}"
    line += f"; floor {100 * figures['floor']['overall']['share']:.1f}"
    line += f", ceiling {100 * figures['ceiling']['overall']['share']:.1f})" if figures["ceiling"] else ")"
    print(line)


if __name__ == "__main__":
    with one_line_errors():
        main()
