"""Dry runs: what a training will take, told beforehand, with nothing left behind."""

import re
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY
from faulty import LineTask, time_steps, trainer
from processes import SCRIPTS, Script

from ldm.config import load
from ldm.run import Run
from ldm.stages import stage, train_autoencoder, train_clip
from ldm.training import preflight as module
from ldm.training.preflight import Plan, check_disk, in_bytes, in_time, preflight, told_if_memory_runs_out
from ldm.training.start import Start

CPU = torch.device("cpu")
GAN = f"train_autoencoder.py --config {SCRIPTS.parent / 'configs' / 'shapes_gan.yaml'}"
TRAININGS = [*sorted(path.name for path in SCRIPTS.glob("train_*.py")), "cache_latents.py", GAN]
UNTRAINED = [override for override in TINY if not override.startswith(("autoencoder.", "text."))]  # shipped stages
CODED = [*TINY, "bottleneck=vq", "bottleneck.codes=16", "autoencoder.channels=4"]
SHIPPED = ["data.length=64", "train_control.batch=2", "train_control.validate_samples=2", "train_control.workers=0"]
OWN = {  # settings by script
    "train_autoencoder.py": TINY,
    "train_clip.py": TINY,
    "train_control.py": SHIPPED,
    "train_prior.py": CODED,
    "train_unclip.py": TINY,
}


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("command", TRAININGS, ids=lambda command: Path(command).name)
def test_a_dry_run_tells_what_the_run_takes_and_leaves_nothing_behind(command, tmp_path, monkeypatch):
    script, *config = command.split()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "run").mkdir()
    own = OWN.get(script, UNTRAINED)
    if script == "train_unclip.py":  # no picture tower is shipped
        train_clip(load(Run, None, [*own, "train_clip.steps=1", f"out={tmp_path / 'run'}"]), CPU)
    options = [*config, *own, "adversarial.start=0", "cache.use=always", f"out={tmp_path / 'run'}", "--dry-run"]
    before = contents(tmp_path / "run")
    with Script(script, *options, output=tmp_path / "said") as process:
        status, said = process.ended()
    assert status == 0, said
    assert contents(tmp_path / "run") == before and not list((tmp_path / "tmp").glob("ldm-*"))
    assert said.rstrip().endswith(f"a dry run: nothing was written to {tmp_path / 'run'}")
    if script in ("train_ldm.py", "cache_latents.py"):
        assert re.search(r"the latent cache would take about [\d.]+ kB and \d+ s \(from 8 of 64\)", said)
    if script != "cache_latents.py":
        told = ("parameters", "FLOPs", "memory", "speed", "time", "disk")
        assert [line.split()[0] for line in said.split("dry run of ")[1].splitlines()[1:7]] == [*told]


def test_a_dry_run_is_told_to_no_tracker(tmp_path, monkeypatch):
    tracked = []
    monkeypatch.setattr(stage, "preflight", lambda make, *_: tracked.append(make.args[1].tracker))
    run = load(Run, None, [*TINY, "train_autoencoder.tracker=tensorboard", f"out={tmp_path / 'run'}"])
    train_autoencoder(run, CPU, Start(scratch=tmp_path))
    assert tracked == [""]


def plan(tmp_path, **settings):
    return preflight(lambda folder: trainer(folder, LineTask(), **settings), tmp_path / "scratch", tmp_path, CPU)


def test_the_figures_are_those_of_the_network(tmp_path):
    found = plan(tmp_path, batch=8, steps=1_000, keep=3)
    weights = 4 * 8 + 8 + 8 + 1
    assert (found.parameters, found.trained) == (weights, weights)
    # two a multiplication and addition: forward, then the gradients of weights and, but for the first layer, of inputs
    assert found.flops == 2 * (2 * 4 * 8 + 3 * 8)
    assert found.seconds == pytest.approx(1_000 * 8 / found.images_per_second)
    made = trainer(tmp_path / "real", LineTask(), batch=8, steps=1)
    made.run()
    written = sum(path.stat().st_size for path in (tmp_path / "real/state/step-00000001").glob("*.safetensors"))
    assert found.checkpoint < written < found.checkpoint + 3 * 2_000  # a header for each of three files
    assert found.disk == 4 * found.checkpoint + 4 * weights


def test_what_is_written_after_the_training_counts_as_disk(tmp_path):
    def made(folder):
        return trainer(folder, LineTask())

    plain, more = (preflight(made, tmp_path / f"{n}", tmp_path, CPU, n) for n in (0, 12_345))
    assert more.disk == plain.disk + 12_345


def test_the_time_is_that_of_as_many_steps_and_the_memory_what_this_process_holds(tmp_path, monkeypatch):
    time_steps(monkeypatch, module, 0.5)
    found = plan(tmp_path, batch=4, accumulate=2, steps=1_000)
    assert (found.images_per_second, found.seconds) == (16, 500)
    assert found.memory > psutil.Process().memory_info().rss / 2


@pytest.mark.parametrize(("seconds", "steps"), [(60.0, 2), (0.5, 10), (0.01, 20)])
def test_two_to_twenty_steps_are_timed_for_five_seconds(tmp_path, monkeypatch, seconds, steps):
    time_steps(monkeypatch, module, seconds)
    trained, step = [], module.Trainer.train_step
    monkeypatch.setattr(module.Trainer, "train_step", lambda made, batches: trained.append(1) or step(made, batches))
    assert plan(tmp_path, batch=4, steps=100).seconds == pytest.approx(100 * seconds)
    assert len(trained) == 1 + steps  # one before that starts the loader


def test_frozen_parameters_count_as_not_trained(tmp_path):
    task = LineTask()
    task.network.first.requires_grad_(False)
    found = preflight(lambda folder: trainer(folder, task), tmp_path / "scratch", tmp_path, CPU)
    assert (found.parameters, found.trained) == (49, 9)


def test_what_has_no_room_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(ValueError, match=r"line's training takes .* kB of disk and .* has 1 kB free: try a lower keep"):
        plan(tmp_path)
    with pytest.raises(ValueError, match="cache.use=never"):
        check_disk(2_000, tmp_path / "not" / "there", "the cache", "cache.use=never does without")
    check_disk(1_000, tmp_path / "not" / "there", "the cache", "")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(), "allocator"]
)
def test_what_has_no_room_in_memory_is_refused(error):
    told = pytest.raises(ValueError, match="does not fit into the memory .* half of batch and twice of accumulate")
    with told, told_if_memory_runs_out(1 << 28):
        if isinstance(error, str):
            torch.empty(1 << 33, dtype=torch.uint8)
        raise error
    torch.ones(1 << 29, dtype=torch.uint8)  # the limit is off again


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), told_if_memory_runs_out(1 << 30):
        raise RuntimeError("shapes do not fit")


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    free = module.free_memory(CPU)
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert module.free_memory(CPU) == 2000 < free
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_anon 50\ninactive_file 600\nactive_file 200\n")
    assert module.free_memory(CPU) == 2600  # cached files that are not in use make room
    (tmp_path / "memory.current").write_text("3700\n")
    assert module.free_memory(CPU) == 0  # the limit was lowered below what is held
    (tmp_path / "memory.stat").write_text("inactive_file\n")
    assert module.free_memory(CPU) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert module.free_memory(CPU) > 2000


def test_on_a_gpu_its_own_free_memory_from_before_is_told_and_main_memory_is_not_limited(tmp_path, monkeypatch):
    """The GPU is one in name; making the training takes nearly all of it."""
    resource = pytest.importorskip("resource")
    gpu, free, limits = torch.device("cuda", 1), {torch.device("cuda", 1): 7_000_000_000}, []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7_000_000_000 - free[device])

    def make(folder):
        free[gpu] = 2_000_000_000
        limits.append(resource.getrlimit(resource.RLIMIT_AS))
        return trainer(folder, LineTask())

    before = resource.getrlimit(resource.RLIMIT_AS)
    found = preflight(make, tmp_path / "scratch", tmp_path, gpu)
    assert "5 GB at the peak; 7 GB were free" in str(found)
    preflight(make, tmp_path / "again", tmp_path, CPU)
    assert limits[0] == before != limits[1]


def test_numbers_are_told_in_units():
    assert [in_bytes(size) for size in (512, 2.5e6, 3e9)] == ["0.512 kB", "2.5 MB", "3 GB"]
    assert [in_time(seconds) for seconds in (5, 600, 36_000)] == ["5 s", "10 min", "10.0 h"]
    assert str(Plan("x", 1, 1, 1, 1, 1, 1.0, 1.0, 1, 1, 1)).count("\n") == 6
