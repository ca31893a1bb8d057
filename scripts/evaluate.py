"""Score a model, or pictures that any program made, on the exact benchmark of the shapes world.

Writes report.html, a page to look at, and report.json with the same figures into a folder. What the figures mean and
when to trust them is told in docs/evaluation.md.
"""

import argparse
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm.cli import (
    DRAWING,
    SHORT,
    add_sampling,
    add_steering,
    check_seed,
    device_of,
    given_sampling,
    given_steering,
    one_line_errors,
    options_given,
)
from ldm.cli_metrics import add_sources, read_sources, sources_asked
from ldm.config import load, to_dict
from ldm.data.shapes import ShapesConfig
from ldm.evaluation.benchmark import Pictures, read_folder, read_reference
from ldm.evaluation.evaluation import (
    Drawer,
    score_autoencoder,
    score_model,
    score_pictures,
    with_autoencoder,
    with_general,
    with_held_out,
    with_sweeps,
)
from ldm.evaluation.general import Networks, Sources, in_words
from ldm.evaluation.prompts import CATEGORIES, SEED, TRAINING_SEED, Prompt, prompt_set, read_prompts
from ldm.evaluation.report import SWEEP_PROMPTS, Report, check_out, write_report
from ldm.folders import CONFIG, digest, load_autoencoder, load_model, lone_autoencoder, shipped_model
from ldm.pipeline import TextToImage
from ldm.run import Run
from ldm.sampling import Sampling
from ldm.training.optim import resolve_precision

PROMPTS, SWEPT = 50, 10  # of each category, in all and at each value of a sweep


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to score")
    what.add_argument(
        "model", nargs="?", type=Path, help="a model's folder, or an autoencoder's alone; the shipped model if left out"
    )
    count = f"{PROMPTS} if left out, of each of 10 categories"
    what.add_argument("--prompts-per-category", type=int, metavar="N", help=count)
    what.add_argument(
        "--prompt-seed", type=int, metavar="N", help="draw other prompts of the same kinds than the benchmark's"
    )
    what.add_argument("--categories", metavar="NAME,...", help="prompts of these categories alone")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="prompts of your own, one on each line")
    what.add_argument("--images", type=Path, metavar="DIR", help="pictures of another program, one a prompt, by name")
    what.add_argument("--write-prompts", type=Path, metavar="FILE", help="write the prompts for --images and leave")
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="scale=1,2,4",
        help="scores at each value",
    )
    what.add_argument(
        "--sweep-prompts",
        type=int,
        metavar="N",
        help=f"a category at each value, not of the benchmark's own; {SWEPT} if left out",
    )
    what.add_argument("--likelihood", action="store_true", help="also how likely held-out latents are: minutes")
    what.add_argument("--seed", type=int, help="of the first picture, 0 if left out; the next count up by 1")
    how = parser.add_argument_group("how to draw (the model's own settings where left out)")
    add_sampling(how, "what the machine multiplies fastest")
    add_steering(how)
    more = parser.add_argument_group("the field's other metrics (extra: pip install -e '.[eval]')")
    more.add_argument("--general", action="store_true", help="also FID, KID, CLIP score and the autoencoder's figures")
    more.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="true pictures, cut to squares of the size that is drawn; else drawn ones of the prompts",
    )
    add_sources(more)
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"), help="folder of the report")
    return parser.parse_args()


def main() -> None:
    args = parse()
    check_together(args)
    prompts, whose = asked_for(args)
    if args.write_prompts:
        with args.write_prompts.open("x", encoding="utf-8") as file:
            file.writelines(f"{prompt.text}\n" for prompt in prompts)
        print(f"{len(prompts)} prompts in {args.write_prompts}")
        return
    check_seed(args.seed or 0, len(prompts))
    sources, out = read_sources(args), check_out(args.out)
    what: dict[str, Any] = {"prompts": counted(prompts, whose)}
    folder, autoencoder = args.model or shipped_model(), None
    general = args.general or sources != Sources() or args.reference is not None
    networks = Networks()
    if args.images:
        pictures = read_folder(args.images, len(prompts))
        reference = read_true(args, pictures.shape[1])
        if general:
            networks = sources.load("inception", "clip")
        report = score_pictures(prompts, pictures, {"model": str(args.images), **what})
    elif lone_autoencoder(folder):
        autoencoder, run = load_autoencoder(folder, device_of(args.device))
        if not isinstance(run.data, ShapesConfig):
            raise ValueError(
                f"{folder} was not trained on the shapes world, and the benchmark reads no other; "
                f"measure it by python scripts/metrics.py {folder}"
            )
        reference, networks = read_true(args, run.data.size), sources.load("inception", "lpips")
        report = score_autoencoder(autoencoder, run, prompts, {**described(folder), **what})
        report, general = with_autoencoder(report, autoencoder, networks, reference=reference), False
    else:
        model, run = load_model(folder, device_of(args.device)), load(Run, folder / CONFIG)
        autoencoder, reference = model.autoencoder, read_true(args, run.data.size)
        if general:
            networks = sources.load("inception", "clip", "lpips")  # before minutes of drawing
        report = of_model(args, model, prompts, what={**described(folder), **what}, run=run, out=out)
    write_report(out, report)
    if general:
        report = with_general(report, networks, reference=reference, autoencoder=autoencoder)
        write_report(out, report)
    tell(report)
    print(f"report: {out / 'report.html'}")


def read_true(args: argparse.Namespace, size: int) -> Pictures | None:
    """The true pictures that were named, of ``size`` pixels a side."""
    return None if args.reference is None else read_reference(args.reference, size)


def of_model(
    args: argparse.Namespace,
    model: TextToImage,
    prompts: list[Prompt],
    *,
    what: dict[str, Any],
    run: Run,
    out: Path,
) -> Report:
    """The report of what ``model``, which ``run`` made, draws; ``out`` is given one before all is done."""
    model.sampling = model.sampling.but(*given_sampling(args))
    if args.likelihood and model.unclip is not None:
        raise ValueError("--likelihood: this model is told CLIP's embedding of the very picture; leave it out")
    sweeps = read_sweeps(args.sweep, model.sampling)
    steer, steering = given_steering(args, model, model.sampling)
    draw = Drawer(model, args.seed or 0, args.precision or resolve_precision("auto", model.device), steer)
    steered = {"steering": steering} if steering else {}
    report = score_model(draw, run, prompts, {**what, **drawing(draw), **steered})
    write_report(out, report)  # what may fail or be broken off below loses nothing
    # what a model is chosen by is not what it is judged by
    count = SWEPT if args.sweep_prompts is None else args.sweep_prompts
    few = prompts if args.prompts else of_categories(args, prompt_set(count, TRAINING_SEED))
    if sweeps and few is not prompts:
        swept = counted(few, f"the benchmark's kinds, seed {TRAINING_SEED}")
        report = replace(report, what={**report.what, SWEEP_PROMPTS: swept})
    report = with_sweeps(report, draw, few, sweeps)
    return with_held_out(report, model, run, likelihood=args.likelihood)


def asked_for(args: argparse.Namespace) -> tuple[list[Prompt], str]:
    """The prompts to score, and in words whose they are."""
    if args.prompts:
        return read_prompts(args.prompts), str(args.prompts)
    seed = SEED if args.prompt_seed is None else args.prompt_seed
    if not 0 <= seed < 2**63:
        raise ValueError(f"--prompt-seed {seed} is not a number from 0 to 2^63 - 1")
    prompts = prompt_set(PROMPTS if args.prompts_per_category is None else args.prompts_per_category, seed)
    whose = "the benchmark" if seed == SEED else f"the benchmark's kinds, seed {seed}"
    return of_categories(args, prompts), whose + ("" if args.categories is None else f", {args.categories} alone")


def counted(prompts: list[Prompt], whose: str) -> str:
    """How many prompts, whose they are, and a hash of them."""
    lines = "\n".join(prompt.text for prompt in prompts)
    return f"{len(prompts)} ({whose}, {sha256(lines.encode()).hexdigest()[:10]})"


def of_categories(args: argparse.Namespace, prompts: list[Prompt]) -> list[Prompt]:
    """Those of ``prompts`` whose category is asked for."""
    names = [*CATEGORIES] if args.categories is None else [name.strip() for name in args.categories.split(",")]
    if unknown := [name for name in names if name not in CATEGORIES]:
        raise ValueError(f"--categories '{unknown[0]}' is not one of {', '.join(CATEGORIES)}")
    return [prompt for prompt in prompts if prompt.category in names]


def read_sweeps(texts: list[str], sampling: Sampling) -> dict[str, list[float]]:
    """{"guidance.scale": [1.0, 2.0]} of ["scale=1,2"], each value checked against what ``sampling`` has."""
    sweeps: dict[str, list[float]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        key = SHORT.get(name, name)
        try:
            values = [int(value) if value.strip().isdigit() else float(value) for value in listed.split(",")]
        except ValueError as error:
            raise ValueError(f"--sweep {text}: '{listed}' is no list of numbers; write e.g. {name}=1,2,4") from error
        for value in values:
            sampling.but(f"{key}={value}")
        sweeps[key] = [*sweeps.get(key, []), *values]
    return sweeps


def check_together(args: argparse.Namespace) -> None:
    """A ValueError where an option stands without the one it belongs to, or beside one that makes it void."""
    others = {"--prompts-per-category": args.prompts_per_category, "--prompt-seed": args.prompt_seed}
    for option, value in {**others, "--categories": args.categories}.items():
        if args.prompts and value is not None:
            raise ValueError(f"--prompts are all there is to draw; leave out {option}")
    drawn = options_given(args, (*DRAWING, "sweep", "likelihood"))
    if args.images and (args.model or args.device or drawn):
        raise ValueError("--images are scored as they are; leave out the model, --sweep and the options of drawing")
    autoencoder = args.model and lone_autoencoder(args.model)
    if autoencoder and autoencoder != args.model:
        raise ValueError(f"{args.model} holds an autoencoder and no model; give {autoencoder}")
    if autoencoder and (void := [*drawn, *options_given(args, ("clip", "clip_run"))]):
        raise ValueError(f"{autoencoder} is an autoencoder alone; leave out {', '.join(void)}")
    if args.sweep and args.classifier_form == "mean":
        raise ValueError("--classifier-form mean goes by the levels of one grid; leave out --sweep, or the form")
    if args.sweep_prompts is not None and (args.prompts or not args.sweep):
        raise ValueError(f"--sweep-prompts {args.sweep_prompts} are of a --sweep without --prompts; leave them out")
    if args.images and args.lpips:
        raise ValueError("--lpips is of an autoencoder's pictures, and --images have none; leave it out")
    scored = (args.model, args.images, args.general, args.reference, sources_asked(args))
    if args.write_prompts and (drawn or any(scored)):
        raise ValueError("--write-prompts scores nothing; leave out all but the prompts' own options")


def described(folder: Path) -> dict[str, Any]:
    """Which model: the end of its path, for every run calls its own "model", and the hash of its manifest."""
    return {"model": "/".join(folder.resolve().parts[-2:]), "hash": digest(folder)}


def drawing(draw: Drawer) -> dict[str, Any]:
    """How it draws."""
    parts = to_dict(draw.model.sampling)
    sample = parts.pop("sample")
    shown = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    clip = {"clip": sample["clip"]} if sample["clip"] else {}
    return {"steps": sample["steps"], **clip, **shown, "seed": draw.seed, "precision": draw.precision}


def tell(report: Report) -> None:
    """Print the score by category and attribute, the other metrics, and what to know of them."""
    score = report.marked.score
    for name, share in score.categories.items():
        print(f"{name:>18} {share.percent()} of {share.total}")
    for name, share in score.attributes.items():  # no interval: those of one picture do not vary independently
        print(f"{name:>18} {100 * share.value:.1f} % of {share.total}")
    for line in in_words(report.tables, report.notes):
        print(line)
    low, high = score.overall.interval
    beside = {"floor": report.floor, "ceiling": report.ceiling}
    parts = [f"; {name} {100 * other.overall.value:.1f}" for name, other in beside.items() if other]
    line = f"{100 * score.overall.value:.1f} % of {score.overall.total} pictures right"
    print(f"{line} (95 % interval {100 * low:.1f} to {100 * high:.1f}{''.join(parts)})")


if __name__ == "__main__":
    with one_line_errors():
        main()
