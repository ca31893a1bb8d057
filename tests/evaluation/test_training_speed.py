"""benchmarks/training_speed.py: its rows are configurations, and it reads what a dry run prints."""

import pytest

from benchmarks.training_speed import FIRST, ROWS, measured_by
from ldm.config import load
from ldm.run import Run
from ldm.training.preflight import Plan


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_configuration_that_is_not_refused(row):
    assert bool(ROWS[row]) == (row != FIRST)
    load(Run, None, ROWS[row])


@pytest.mark.parametrize(("speed", "read"), [(87.25, 87.2), (1234.5, 1230.0)])
def test_speed_and_memory_are_read_from_a_dry_run(speed, read):
    plan = Plan("denoiser", 9, 9, 10**9, 2 * 10**9, 20 * 10**9, speed, 60.0, 10**8, 10**9, 10**11)
    assert measured_by(str(plan)) == (read, "2 GB")


def test_what_is_no_dry_run_is_told():
    assert measured_by("error: no such key") is None
