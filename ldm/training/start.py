"""How a training begins: what was asked of it, and what has changed since its checkpoint was written."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.training.optim import TrainConfig

# settings of a training that may change without a word: how long, how often to look, where to, how fast
FREE = {
    *("steps", "keep", "tracker", "workers"),
    *("log_every", "validate_every", "validate_samples", "sample_every", "save_every", "score_every", "score_prompts"),
}
# sections that no training step reads; what an objective takes of them is among its conditions
DRAWING = {"sampler", "grid", "guidance", "sample", "out", "base", "cache"}
DECODER_ALONE = {"autoencoder.decoder_width", "autoencoder.decoder_blocks"}  # what no latent depends on
UNREAD = {  # sections and settings that a stage's training does not read either
    "autoencoder": {
        *("text", "denoiser", "schedule", "process", "objective", "weight", "times"),
        *("classifier", "control", "prior", "unclip"),
    },
    "clip": {
        *("autoencoder", "bottleneck", "decoder_only", "reconstruction", "adversarial", "robustness"),
        *("denoiser", "classifier", "control", "prior", "unclip"),
        *("schedule", "process", "objective", "weight", "times"),
    },
    "denoiser": {
        *("decoder_only", "reconstruction", "adversarial", "robustness", "classifier", "control", "prior"),
        *DECODER_ALONE,
        *(f"unclip.{name}" for name in ("width", "depth", "heads", "pictures", "steps", "scale")),
    },
    "classifier": {
        *("decoder_only", "reconstruction", "adversarial", "robustness", "text", "denoiser", "control", "prior"),
        *("unclip", "process", "objective", "weight", "times", *DECODER_ALONE),
    },
    "control": {
        *("decoder_only", "reconstruction", "adversarial", "robustness", "classifier", "prior"),
        *("objective", "unclip", *DECODER_ALONE),
    },
    "prior": {
        *("decoder_only", "reconstruction", "adversarial", "robustness", "text", "denoiser", "classifier", "control"),
        *("schedule", "process", "objective", "weight", "times", "unclip", *DECODER_ALONE),
    },
    "unclip": {
        *("autoencoder", "bottleneck", "decoder_only", "reconstruction", "adversarial", "robustness"),
        *("denoiser", "classifier", "control", "prior", "schedule", "process", "objective", "weight", "times"),
        *("unclip.decoder", "unclip.pictures", "unclip.steps", "unclip.scale", "unclip.words_dropout"),
    },
}


@dataclass(frozen=True)
class Start:
    """What was asked of a training when it was started."""

    scratch: Path | None = None  # of a dry run: the folder, soon gone, in which a few steps are tried
    resume_changed: bool = False  # go on from a checkpoint although settings have changed since


PLAIN = Start()


def conditions(config: TrainConfig, processes: int, made_from: dict[str, str]) -> dict[str, Any]:
    """What must be the same for a run to go on: who takes which samples, what steps on them, and ``made_from``."""
    return {
        "number of processes": processes,
        **{name: getattr(config, name) for name in ("batch", "accumulate", "seed", "optimizer")},
        "average": config.ema > 0,
        **made_from,
    }


def changes(then: str, now: str, unread: Set[str]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two configurations as YAML: {"train_ldm.lr": (1e-3, 2e-3)}.

    Left out are sections in ``unread``, what a step does not read, and keys that only one of the two has: they belong
    to a part that was replaced, whose name differs too, or to another version of this program.
    """
    before, after = _flat(then), _flat(now)
    both = [key for key in after if key in before and before[key] != after[key]]
    return {key: (before[key], after[key]) for key in both if not _is_free(key, unread)}


def check(
    path: Path, state: dict[str, Any], conditions: dict[str, Any], described: str, unread: Set[str], start: Start
) -> str:
    """What to say of going on from the checkpoint at ``path``, with its ``state``, under the settings ``described``.

    Raises:
        ValueError: a condition is another, or settings are and ``start`` does not allow it; every one is shown.
    """
    then = state.get("conditions", {})
    changed = changes(state.get("config", ""), described, unread)
    others = {name: (then.get(name, "none"), now) for name, now in conditions.items() if then.get(name) != now}
    if start.resume_changed or not changed:  # else the settings tell it below, each by its name
        others |= {name: (was, "none") for name, was in then.items() if name not in conditions}
    if others:
        words = ", ".join(f"another {name} ({was}, now {now})" for name, (was, now) in others.items())
        way_out = f"go on with that, or begin anew with another out=, or by deleting {path.parent}"
        raise ValueError(f"{path} was made with {words}: {way_out}")
    words = ", ".join(f"{key} was {then} and is now {now}" for key, (then, now) in changed.items())
    if changed and not start.resume_changed:
        raise ValueError(
            f"{path} was made with other settings: {words}; add --resume-changed to go on with the new ones, "
            "or begin anew with another out="
        )
    return f"going on with other settings: {words}" if changed else ""


def _is_free(key: str, unread: Set[str]) -> bool:
    section, _, name = key.partition(".")
    return bool({section, key} & unread) or section in DRAWING or (section.startswith("train_") and name in FREE)


def _flat(text: str) -> dict[str, Any]:
    """ "section.key" -> value of a configuration as YAML."""
    flat: dict[str, Any] = {}
    for section, node in (yaml.safe_load(text) or {}).items():
        keys = {f"{section}.{key}": value for key, value in node.items()} if isinstance(node, dict) else {section: node}
        flat |= keys
    return flat
