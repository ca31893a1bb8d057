"""Kill a tiny training at random moments, resume it each time, and compare with one that nobody disturbed.

python tests/soak.py --kills 100
"""

import argparse
import json
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from conftest import TINY
from processes import Script
from tqdm import tqdm

from ldm.files import check_folder, read_tensors, settled
from ldm.training.checkpoint import newest
from ldm.training.log import read

SCRIPT = "train_autoencoder.py"
KINDS = ("SIGKILL", "SIGTERM", "full disk")
ENDS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "full disk": {2}}  # -15: before the script has begun
EARLY, AIMED = 0.15, 0.4  # shares of the kills that hit a run before its first step, and within a save
FILES = ("weights", "ema", "optimizer")


def soak(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Figures of a training that was killed ``kills`` times; AssertionError where anything was lost."""
    rng, steps = Random(seed), 5 * kills // 2 + 20
    options = (f"steps={steps}", "sample_every=7", "keep=1")
    settings = ["data.size=16", *(f"train_autoencoder.{option}" for option in options)]
    whole, out = folder / "whole", folder / "killed"
    run_to_the_end(settings, whole, folder)
    sizes = [path.stat().st_size for path in newest(state(whole)).rglob("*.safetensors")]
    killed, back, mid_save = Counter(), 0, 0
    for number in tqdm(range(kills), desc="kills"):
        kind = KINDS[number % len(KINDS)]
        before, reached = step_of(out), last_step(out)
        limit = rng.randrange(min(sizes) // 2, max(sizes)) if kind == "full disk" else 0
        with Script(SCRIPT, *TINY, *settings, f"out={out}", output=folder / "said", file_size=limit) as script:
            if not limit:
                wait_for_the_moment(script, out, before + rng.randrange(5), rng)
                mid_save += is_saving(out)
                script.signal(getattr(signal, kind))
            status, said = script.ended()
        assert status in ENDS[kind], f"kill {number}, {kind}: status {status}\n{said}"
        assert "Traceback" not in said, said
        after = step_of(out)
        assert after >= before, f"kill {number}, {kind}: step {before} was saved and is lost, {after} is left"
        assert not settled(out / "autoencoder") or check_folder(out / "autoencoder") is None
        killed[kind] += 1
        back += max(0, max(reached, last_step(out)) - after)
    run_to_the_end(settings, out, folder)
    compare(newest(state(whole)), newest(state(out)))
    return {"kills": dict(killed), "steps": steps, "steps made again": back, "kills within a save": mid_save}


def wait_for_the_moment(script: Script, out: Path, step: int, rng: Random) -> None:
    """Wait until the run has reached ``step``, and perhaps until it saves, and some milliseconds more."""
    draw = rng.random()
    if draw < EARLY:
        time.sleep(2 * rng.random())
        return
    script.wait_for(lambda: last_step(out) >= step)
    if draw < EARLY + AIMED:
        script.wait_for(lambda: is_saving(out))
        time.sleep(0.02 * rng.random())
    else:
        time.sleep(0.2 * rng.random())


def is_saving(out: Path) -> bool:
    return any(path for place in (state(out), out) for path in place.glob(".*.partial"))


def run_to_the_end(settings: list[str], out: Path, folder: Path) -> None:
    with Script(SCRIPT, *TINY, *settings, f"out={out}", output=folder / "said") as script:
        status, said = script.ended(1_800)
    assert status == 0, said


def compare(whole: Path, killed: Path) -> None:
    assert whole.name == killed.name
    for name in FILES:
        ours, theirs = (read_tensors(path / f"{name}.safetensors") for path in (killed, whole))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(value, ours[key]), f"{name}: {key} differs"


def state(out: Path) -> Path:
    return out / "training" / "autoencoder" / "state"


def step_of(out: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one; a broken one must not be there at all."""
    warnings: list[str] = []
    path = newest(state(out), warn=warnings.append)
    assert not warnings, warnings
    return int(json.loads((path / "state.json").read_text())["step"]) if path else 0


def last_step(out: Path) -> int:
    return max((line["step"] for line in read(state(out).parent / "log.jsonl")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        figures = soak(Path(folder), args.kills, args.seed)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(f"the weights are those of the undisturbed run; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
