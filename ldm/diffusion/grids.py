"""The noise levels that a sampler visits: from pure noise to exactly (t, alpha, sigma) = (0, 1, 0). Plain floats."""

from ldm.types import Grid, Level, Schedule

CLEAN = Level(0.0, 1.0, 0.0)


def uniform(schedule: Schedule, steps: int) -> Grid:
    """``steps`` + 1 levels evenly spaced in t: "trailing" steps (Lin et al. 2024, arXiv:2305.08891)."""
    if steps < 1:
        raise ValueError(f"steps {steps} is not at least 1; try steps=50")
    return Grid([*(schedule.level((steps - i) / steps) for i in range(steps)), CLEAN], schedule)
