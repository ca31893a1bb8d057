"""The stochastic differential equation behind a schedule (Song et al. 2021, arXiv:2011.13456)."""

from math import log

from ldm.types import Schedule

H = 1e-6  # half of the stretch of time over which a derivative is measured


def drift_and_diffusion(schedule: Schedule, t: float) -> tuple[float, float]:
    """f(t) and g(t)^2 of dx = f(t) x dt + g(t) dw, whose marginals are ``schedule``'s x = alpha x0 + sigma noise.

    f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 (Lu et al. 2022, arXiv:2206.00927, Sec. 2.1), by central
    differences in float64. ``t`` is in [0, 1]; where a table's beta jumps, both are the means of both sides.

    Raises:
        ValueError: no signal is left at ``t``, to which the drift so is infinite.
    """
    before, now, after = (schedule.level(time) for time in (max(0.0, t - H), t, min(1.0, t + H)))
    if after.alpha <= 0:
        raise ValueError(f"t {t} is where alpha is 0, and no finite drift leads there; try t={1 - 1e-3}")
    dt = after.t - before.t
    drift = log(after.alpha / before.alpha) / dt
    return float(drift), float((after.sigma**2 - before.sigma**2) / dt - 2 * drift * now.sigma**2)
