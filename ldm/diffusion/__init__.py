"""Schedules, targets, weights, times, the training loss, guidance and sampling grids, each in the file of its name."""

from ldm.diffusion.process import Process, ProcessConfig
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS
from ldm.diffusion.times import TIMES
from ldm.diffusion.weights import WEIGHTS

__all__ = ["SCHEDULES", "TARGETS", "TIMES", "WEIGHTS", "Process", "ProcessConfig"]
