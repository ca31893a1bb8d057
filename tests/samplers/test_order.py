"""The order of each deterministic solver, as it shows on a problem with an exact answer."""

import importlib.util
from math import exp, log
from pathlib import Path

import pytest
import torch
from scipy.integrate import solve_ivp

from ldm.diffusion.schedules import SCHEDULES

PATH = Path(__file__).parents[2] / "benchmarks" / "solver_order.py"
SPEC = importlib.util.spec_from_file_location("solver_order", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)
SCHEDULE = SCHEDULES["vp"]().build()


@pytest.fixture(scope="module")
def problem():
    return BENCHMARK.problem(SCHEDULE)


def test_the_exact_answer_is_scipys(problem):
    x, exact = problem
    start, end = BENCHMARK.even(SCHEDULE, 1)
    mixture = BENCHMARK.Mixture()

    def slope(log_nsr, y):
        level = SCHEDULE.level(SCHEDULE.t_at(exp(log_nsr)))
        y = torch.from_numpy(y).view(x.shape)
        return (y - mixture(level.alpha * y, level).x0).flatten().numpy()

    span = log(start.nsr), log(end.nsr)
    solved = solve_ivp(slope, span, (x / start.alpha).flatten().numpy(), method="DOP853", rtol=1e-9, atol=1e-9)
    expected = end.alpha * torch.from_numpy(solved.y[:, -1]).view(x.shape)
    torch.testing.assert_close(exact, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", BENCHMARK.SOLVERS)
def test_a_solver_is_of_its_order(name, problem):
    solver, order, _ = BENCHMARK.SOLVERS[name]
    steps = [60, 120]
    error = BENCHMARK.errors(solver, steps, SCHEDULE, *problem)
    assert BENCHMARK.slope(steps, error) == pytest.approx(order, abs=0.5 if order == 4 else 0.25)


def test_the_benchmark_draws_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["solver_order.py", "--out", str(tmp_path / "order.svg"), "--most", "12"])
    BENCHMARK.main()
    assert "<svg" in (tmp_path / "order.svg").read_text()
