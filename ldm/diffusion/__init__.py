"""Schedules, targets, the training loss, guidance and sampling grids, each in the file of its name."""

from ldm.diffusion.process import ProcessConfig
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.targets import TARGETS

__all__ = ["SCHEDULES", "TARGETS", "ProcessConfig"]
