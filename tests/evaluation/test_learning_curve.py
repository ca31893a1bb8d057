"""benchmarks/learning_curve.py: the minutes of training before each score."""

import importlib.util
import json
from pathlib import Path

import pytest

from ldm.config import load, to_yaml
from ldm.evaluation.score import Share
from ldm.run import Run

PATH = Path(__file__).parents[2] / "benchmarks" / "learning_curve.py"
SPEC = importlib.util.spec_from_file_location("learning_curve", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)


def run_with(folder, lines, *changes):
    run = load(Run, None, ["train_ldm.batch=30", "train_ldm.accumulate=2", "train_ldm.score_every=20", *changes])
    for path, text in (
        ("model/config.yaml", to_yaml(run)),
        ("training/denoiser/log.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
    ):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)
    return folder


def test_minutes_are_those_of_the_steps_at_the_speed_that_each_stretch_had(tmp_path):
    lines = [
        {"step": 20, "images_per_second": 10.0},  # 20 x 60 pictures: 2 minutes
        {"step": 20, "score": 0.1},
        {"step": 50, "images_per_second": 30.0},  # 30 x 60: 1 minute more
        {"step": 50, "val_loss": 0.2},
        {"step": 50, "score": 0.4},
    ]
    run = run_with(tmp_path, lines)
    found = BENCHMARK.scores(run, run)
    assert list(found) == pytest.approx([2.0, 3.0])
    assert list(found.values()) == [Share(10, 100), Share(40, 100)]


def test_of_several_runs_mean_and_range_are_at_the_mean_of_their_minutes():
    runs = [{1.0: Share(10, 100), 2.0: Share(30, 100)}, {3.0: Share(20, 100), 5.0: Share(50, 100)}]
    found = BENCHMARK.means(runs)
    assert list(found) == [2.0, 3.5]
    assert list(found.values()) == [pytest.approx((0.15, 0.1, 0.2)), pytest.approx((0.4, 0.3, 0.5))]


def test_of_runs_of_the_same_length_the_mean_is_drawn_too(tmp_path, monkeypatch, capsys):
    def made(name, steps, *scores):
        lines = [{"step": 20 * (i + 1), "images_per_second": 10.0, "score": score} for i, score in enumerate(scores)]
        return str(run_with(tmp_path / name, lines, f"train_ldm.steps={steps}"))

    short = [made("a", 20, 0.1), made("b", 20, 0.2), made("c", 20, 0.2, 0.3), made("d", 20, 0.4, 0.5)]
    runs = [*short, short[0], made("e", 40, 0.05)]  # one of them twice
    monkeypatch.setattr("sys.argv", ["learning_curve.py", *runs, "--out", str(tmp_path / "curve.svg")])
    drawn = {}
    monkeypatch.setattr(BENCHMARK, "curve", lambda lines, *axes: drawn.update(lines) or "<svg>")
    BENCHMARK.main()
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(drawn) == 5 + 2
    of = "mean of 2 runs of 20 steps of 60, scored"
    assert told[5:] == [
        f"{of} 1 times: 15% (10% to 20%) after 2.0 min",
        f"{of} 2 times: 30% (20% to 40%) after 2.0 min, 40% (30% to 50%) after 4.0 min",
    ]
    assert [name for name, line in drawn.items() if isinstance(next(iter(line.values())), tuple)] == [*drawn][5:]


def test_a_run_by_itself_has_the_interval_of_its_pictures(tmp_path, monkeypatch, capsys):
    run = run_with(tmp_path / "a", [{"step": 20, "images_per_second": 10.0, "score": 0.5}])
    monkeypatch.setattr("sys.argv", ["learning_curve.py", str(run), "--out", str(tmp_path / "curve.svg")])
    BENCHMARK.main()
    assert capsys.readouterr().out == f"{run}: 50% (40% to 60%) after 2.0 min\n"
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")


def test_a_run_without_scores_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"never scored; train it with train_ldm.score_every=500"):
        run = run_with(tmp_path, [{"step": 20, "images_per_second": 10.0}])
        BENCHMARK.scores(run, run)


def test_a_score_of_another_number_of_pictures_is_refused(tmp_path):
    lines = [{"step": 20, "images_per_second": 10.0}, {"step": 20, "score": 0.123}]
    with pytest.raises(ValueError, match=r"a score of 0\.123 is none of 100 pictures"):
        run = run_with(tmp_path, lines)
        BENCHMARK.scores(run, run)


def test_the_minutes_may_be_those_of_another_run(tmp_path):
    """Which was scored elsewhere, and logged at these steps."""
    steps = [{"step": step, "images_per_second": speed} for step, speed in ((10, 10.0), (20, 20.0), (30, 30.0))]
    clock = run_with(tmp_path / "clock", steps)
    slow = [{"step": 20, "images_per_second": 1.0}, {"step": 20, "score": 0.4}]
    run = run_with(tmp_path / "run", slow)
    assert [*BENCHMARK.scores(run, clock)] == pytest.approx([1.5])
    assert [*BENCHMARK.scores(run, run)] == pytest.approx([20.0])
    other = run_with(tmp_path / "other", [{"step": 25, "score": 0.4}])
    with pytest.raises(ValueError, match="clock has logged nothing at step 25, where .*other was scored"):
        BENCHMARK.scores(other, clock)
