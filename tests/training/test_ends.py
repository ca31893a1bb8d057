"""Processes that end: killed within a save, out of disk, asked to stop at any time, or left by one of their own."""

import os
import re
import shutil
import signal
import sys
import time
from contextlib import nullcontext, suppress
from subprocess import Popen

import psutil
import pytest
import torch
from conftest import TINY
from faulty import Deadly, LineTask, Wrong, fail, fill, hang_in, rank_of_two, save, script_of_two, terminate, trainer
from processes import FORKS, PATIENCE, SCRIPTS, Script, pair, torchrun
from soak import KINDS, soak

from ldm.data.loader import batches
from ldm.files import check_folder, settled
from ldm.training import checkpoint, signals
from ldm.training.checkpoint import newest, saved
from ldm.training.log import read
from ldm.training.loop import Stopped
from ldm.training.signals import Signals, terminating

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals, and no forks")
UNTRAINED = [override for override in TINY if not override.startswith(("autoencoder.", "text."))]  # shipped stages
GRACE = 30  # seconds from SIGTERM to SIGKILL on most clusters


def killed_in(point, call, folder, *args):
    """Kill -9 a process that is stopped within ``call``, at its second entry of ``point``."""
    process = FORKS.Process(target=hang_in, args=(point, call, folder, *args))
    process.start()
    try:
        end = time.monotonic() + 120
        while not folder.with_name("hangs").exists():
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("point", ["save_file", "_hash", "_sync"])
def test_a_save_that_is_killed_leaves_the_checkpoint_before_and_the_torn_one_is_ignored(tmp_path, point):
    """Fault 10: between files, between hashes, between syncs. Fault 12: with keep = 1."""
    folder = tmp_path / "state"
    save(folder, 2)
    killed_in(point, save, folder, 4)
    assert [path.name for path in folder.iterdir() if path.name.endswith(".partial")], "it was not within a save"
    warnings = []
    assert newest(folder, warn=warnings.append).name == "step-00000002" and not warnings
    save(folder, 6)
    assert [path.name for path in folder.iterdir()] == ["step-00000006"]  # what was torn is swept up


@pytest.mark.parametrize("find", [settled, check_folder, lambda folder: fill(folder, "third")])
def test_a_folder_whose_swap_is_killed_between_both_renames_is_put_back(tmp_path, find):
    """Fault 10, for a model folder that replaces another."""
    folder = tmp_path / "model"
    fill(folder, "first")
    killed_in("rename", fill, folder, "second")
    assert not folder.exists()
    find(folder)
    check_folder(folder)
    assert (folder / "a.txt").read_text() in ("first", "third")
    fill(folder, "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hangs", "model"]


def test_a_swap_that_goes_on_is_left_alone(tmp_path):
    fill(tmp_path / "model", "first")
    shutil.copytree(tmp_path / "model", tmp_path / ".model.1.old")  # as while it is being removed
    assert settled(tmp_path / "model") and (tmp_path / ".model.1.old").exists()
    assert not settled(tmp_path / "other")


@pytest.mark.parametrize("kills", [len(KINDS)])
def test_a_run_that_is_killed_at_random_moments_loses_nothing(tmp_path, kills):
    """Fault 10, fault 11, fault 12 and fault 18 on a real training: SIGKILL, SIGTERM, a full disk; ``make soak``."""
    figures = soak(tmp_path, kills, seed=1)
    assert figures["kills"] == dict.fromkeys(KINDS, 1)


def test_a_full_disk_is_told_in_one_line_and_the_checkpoint_before_is_kept(tmp_path):
    """Fault 11: the temporary folder is gone too. Fault 13: of two checkpoints the newest is torn then."""
    options = [*TINY, f"out={tmp_path}", "train_autoencoder.sample_every=100"]
    with Script("train_autoencoder.py", *options, output=tmp_path / "said") as script:
        assert script.ended()[0] == 0
    state = tmp_path / "training" / "autoencoder" / "state"
    kept = newest(state).name
    more = [*options, "train_autoencoder.steps=8"]
    with Script("train_autoencoder.py", *more, output=tmp_path / "said", file_size=20_000) as script:
        status, said = script.ended()
    assert status == 2 and re.search(r"\nerror: .* cannot be written .*; free disk space", said), said
    assert newest(state).name == kept and not list(tmp_path.rglob(".*.partial"))
    weights = saved(state)[-1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with Script("train_autoencoder.py", *more, output=tmp_path / "said") as script:
        status, said = script.ended()
    assert status == 0 and f"warning: checkpoint {kept} is passed over" in said, said
    assert "going on from" in said and "step-00000002" in said


@pytest.mark.parametrize("stops", [True, False])
def test_a_run_that_is_asked_to_stop_saves_its_state_before_it_exports(tmp_path, monkeypatch, stops):
    """Fault 18: exporting may take longer than there is; a run that has come to its end exports first."""
    task, order = LineTask(), []
    new_state, loss = checkpoint.new_state, task.loss
    monkeypatch.setattr(checkpoint, "new_state", lambda *given: order.append("state") or new_state(*given))
    monkeypatch.setattr(task, "export", lambda network, best=False: order.append("export"))

    def asked(network, batch, seed, step):
        if stops and step == 2:
            signal.raise_signal(signal.SIGTERM)
        return loss(network, batch, seed, step)

    monkeypatch.setattr(task, "loss", asked)
    made = trainer(tmp_path, task, save_every=100)
    with pytest.raises(Stopped) if stops else nullcontext():
        made.run()
    assert order == (["state", "export"] if stops else ["export", "state"])
    assert made.step == (3 if stops else 6)


def test_a_signal_to_one_rank_stops_both_after_the_same_step(tmp_path):
    """Fault 18, fault 21: the second of two is asked to, in its third step; neither waits for the other."""
    status, said = pair(rank_of_two, tmp_path, {2}, terminate, 6, save_every=100)
    assert status == [128 + signal.SIGTERM] * 2, said
    assert said.count("stopped at step 3; the same command goes on from here") == 1, said
    assert newest(tmp_path / "run" / "state").name == "step-00000003"
    ours, theirs = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert pair(rank_of_two, tmp_path, set(), torch.clone, 6)[0] == [0, 0]  # and both go on
    assert newest(tmp_path / "run" / "state").name == "step-00000006"


def test_a_run_whose_signal_was_swallowed_while_it_started_stops_after_its_first_step(tmp_path):
    """Fault 18: what a library imports in a bare ``try`` may end with the signal's exception in its ``except``."""
    with terminating():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        made = trainer(tmp_path, LineTask())
        with pytest.raises(Stopped) as stopped:
            made.run()
    assert stopped.value.code == 143 and made.step == 1
    trainer(tmp_path, LineTask()).run()  # which nobody has asked to stop


def asked_to_stop(script, number):
    began = time.monotonic()
    script.signal(number)
    status, said = script.ended()
    assert time.monotonic() - began < GRACE
    return status, said


def test_a_sigterm_to_loader_workers_too_lets_the_step_be_ended_and_saved(tmp_path):
    """Fault 18: torchrun signals the group of a process, a scheduler all of a job; the step needs 60 batches more."""
    options = [*TINY, f"out={tmp_path}", "train_autoencoder.workers=1", "train_autoencoder.accumulate=64"]
    options += ["train_autoencoder.steps=100", "train_autoencoder.log_every=1", "train_autoencoder.batch=1"]
    log = tmp_path / "training" / "autoencoder" / "log.jsonl"
    command = [sys.executable, SCRIPTS / "train_autoencoder.py", *options]
    with (tmp_path / "said").open("w") as said:
        script = Popen(
            command, stdout=said, stderr=said, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        end = time.monotonic() + PATIENCE
        while not read(log):
            assert script.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()
            time.sleep(0.01)
        os.killpg(script.pid, signal.SIGTERM)
        status = script.wait(GRACE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    words = (tmp_path / "said").read_text()
    step = re.search(r"stopped at step (\d+); the same command goes on from here", words)
    assert status == 143 and step, words
    assert newest(log.parent / "state").name == f"step-{int(step[1]):08d}"


def test_loader_workers_go_with_a_training_that_is_killed(tmp_path):
    """Fault 22: without a word to them, as where memory runs out."""
    options = [*TINY, f"out={tmp_path}", "train_autoencoder.workers=1", "train_autoencoder.steps=100000"]
    command = [sys.executable, SCRIPTS / "train_autoencoder.py", *options]
    log = tmp_path / "training" / "autoencoder" / "log.jsonl"
    with (tmp_path / "said").open("w") as said:
        script = Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while not read(log):
            assert script.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()
            time.sleep(0.05)
        left = psutil.Process(script.pid).children(recursive=True)
        assert len(left) >= 2  # a server and its worker
        script.kill()
        script.wait()
        _, alive = psutil.wait_procs(left, timeout=GRACE)
        assert not alive
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_that_draws_its_samples_saves_and_stops_at_once(tmp_path, number):
    """Fault 18: the samples would take hours."""
    long = ["sample.steps=20000", "sampler=ddim", "grid=uniform", "cache.use=never", "train_ldm.sample_every=1"]
    log = tmp_path / "training" / "denoiser" / "log.jsonl"
    options = [*UNTRAINED, *long, f"out={tmp_path}", "train_ldm.validate_every=1", "train_ldm.save_every=100"]
    with Script("train_ldm.py", *options, output=tmp_path / "said") as script:
        assert script.wait_for(lambda: any("val_loss" in line for line in read(log))), script.output.read_text()
        time.sleep(0.5)
        status, said = asked_to_stop(script, number)
    assert status == 128 + number and "stopped at step 1; the same command goes on from here" in said, said
    assert newest(log.parent / "state").name == "step-00000001"
    assert not list((log.parent / "samples").glob("*.png")) if (log.parent / "samples").exists() else True


@pytest.mark.parametrize(("number", "says"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_cache_that_is_stopped_is_not_there(tmp_path, number, says):
    """Fault 18: nothing half-written is left; the next call begins the cache anew."""
    options = [*UNTRAINED, "data.length=1000000", f"out={tmp_path / 'run'}"]
    with Script("cache_latents.py", *options, output=tmp_path / "said") as script:
        # the bar stands: tqdm complains where its own making is broken off
        assert script.wait_for(lambda: "latents:" in script.output.read_text()), script.output.read_text()
        assert any((tmp_path / "run").glob(".cache.*.partial"))
        status, said = asked_to_stop(script, number)
    assert status == 128 + number and said.rstrip().endswith(says), said
    assert not list((tmp_path / "run").iterdir())


def test_an_evaluation_that_is_stopped_leaves_no_report(tmp_path):
    """Fault 18."""
    with Script("evaluate.py", "--out", tmp_path / "report", output=tmp_path / "said") as script:
        assert script.wait_for(lambda: "drawing" in script.output.read_text()), script.output.read_text()
        status, said = asked_to_stop(script, signal.SIGTERM)
    assert status == 143 and said.rstrip().endswith("terminated"), said
    assert not (tmp_path / "report").exists() or not list((tmp_path / "report").iterdir())


def test_a_second_interrupt_acts_at_once():
    """Fault 18: the first is noted, the second is Python's own again; ``whole_folder`` cleans up behind it."""
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_is_the_same_request_unless_it_comes_much_later(monkeypatch):
    """Fault 18: a scheduler and torchrun send one each."""
    with terminating(), Signals() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked.caught == signal.SIGTERM
        monkeypatch.setattr(signals, "ECHO", 0.0)
        with pytest.raises(signals.Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_what_changes_nothing_is_broken_off_by_a_signal_and_not_begun_after_one():
    done = []
    with Signals() as signals:
        signals.unless_caught(lambda: done.append("first"))
        signals.unless_caught(lambda: (signal.raise_signal(signal.SIGTERM), done.append("second")))
        signals.unless_caught(lambda: done.append("third"))
    assert done == ["first"] and signals.caught == signal.SIGTERM


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_worker_that_is_killed_is_told_with_workers_and_memory(workers):
    """Fault 22."""
    with pytest.raises(ChildProcessError, match=rf"one of {workers} loader workers was killed.*memory.*workers=0"):
        list(zip(range(20), batches(Deadly(), 4, seed=0, workers=workers), strict=False))


def test_an_error_in_a_loader_worker_is_told_without_its_traceback():
    with pytest.raises(ValueError) as caught:
        next(batches(Wrong(), 4, seed=0, workers=1))
    assert str(caught.value) == "3 of 4 samples are broken; look at them"


def test_where_a_rank_fails_all_end_and_the_cause_is_shown(tmp_path):
    """Fault 20: by the agent of torchrun itself, which starts the processes here."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    began = time.monotonic()
    with pytest.raises(ChildFailedError) as caught:
        torchrun(script_of_two, restarts=0)(tmp_path, {2}, fail, 1_000_000)
    assert time.monotonic() - began < 60
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert any("error: the third batch of this rank cannot be read" in each for each in said)
    assert all(failure.exitcode for failure in caught.value.failures.values())
