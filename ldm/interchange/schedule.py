"""Noise levels and what the network says of them, as the config.json of one of diffusers' schedulers."""

from typing import Any

import numpy as np

from ldm.config import choose, to_dict
from ldm.diffusion.continuous import FlowConfig
from ldm.diffusion.process import ProcessConfig
from ldm.diffusion.schedules import SCHEDULES, ScheduleConfig, VPTable
from ldm.interchange.names import Settings
from ldm.run import Run

TIMES = 1_000  # a network is told thousandths of the time
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}  # of tables
BETAS = {"beta_start": 0.0001, "beta_end": 0.02}  # the defaults of most of diffusers' schedulers
BETAS_OF_HEUN = {"beta_start": 0.00085, "beta_end": 0.012}  # of these:
HEUN = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
OF_TABLES = [  # all that walk over a table of betas
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
]
TABLES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def no_counterpart(run: Run) -> list[str]:
    """The settings, as key=value, that no scheduler of diffusers' for Stable Diffusion has."""
    schedule, process = run.schedule, run.process
    flow = isinstance(schedule, FlowConfig)
    table = isinstance(schedule.build(), VPTable) and getattr(schedule, "steps", 0) == TIMES
    name = to_dict(run)["schedule"]["name"]
    asked = {
        f"schedule={name}": not (flow or isinstance(schedule.build(), VPTable)),
        f"schedule.steps={getattr(schedule, 'steps', 0)}": isinstance(schedule.build(), VPTable) and not table,
        f"schedule.shift={getattr(schedule, 'shift', 1.0)}": flow and schedule.shift != 1,
        f"process.target={process.target} schedule={name}": process.target not in ({"flow"} if flow else PREDICTIONS),
        "process.unit_input=true": process.unit_input,
        "process.learned_variance=true": process.learned_variance,
    }
    return [setting for setting, holds in asked.items() if holds]


def settings(run: Run) -> dict[str, Any]:
    """The scheduler_config.json of a run; ``no_counterpart`` is empty.

    Of a table it is DDIM's with the levels that ``grid=uniform`` visits here, of a flow DPM-Solver++'s, which rounds
    times to thousandths. Neither reads ``steps_offset`` then, but any other than 1 is warned of.
    """
    if isinstance(run.schedule, FlowConfig):
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            "num_train_timesteps": TIMES,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "steps_offset": 1,
        }
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": TIMES,
        **_levels(run),
        "prediction_type": PREDICTIONS[run.process.target],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }


def _levels(run: Run) -> dict[str, Any]:
    """The levels of a table by its name there, or, where it has none, its betas."""
    asked = to_dict(run)["schedule"]
    theirs = TABLES.get(asked["name"])
    named = {key: asked[key] for key in ("beta_start", "beta_end") if key in asked}
    given = {"name": asked["name"], "zero_snr": asked["zero_snr"], **named}
    if theirs and run.schedule == choose(SCHEDULES, given, "schedule", SCHEDULES[asked["name"]]()):
        return {"beta_schedule": theirs, **named, "rescale_betas_zero_snr": asked["zero_snr"]}
    schedule = run.schedule.build()
    assert isinstance(schedule, VPTable)
    return {"trained_betas": (-np.expm1(np.diff(schedule.log_alpha_bar))).tolist()}


def offset(run: Run) -> float:
    """By how much more, in thousandths, a network is told here than there: diffusers counts a table's levels from 0."""
    return 0.0 if isinstance(run.schedule, FlowConfig) else 1.0


def config_of(theirs: Settings, source: str) -> tuple[ScheduleConfig, ProcessConfig]:
    """The noise levels that a scheduler_config.json describes, and what the network says of them.

    Raises:
        ValueError: they have no counterpart here.
    """
    targets = {prediction: target for target, prediction in PREDICTIONS.items()}
    tables = {name: own for own, name in TABLES.items()}
    asked = {
        "_class_name": theirs.get("_class_name"),
        "prediction_type": theirs.get("prediction_type", "epsilon"),
        "beta_schedule": theirs.get("beta_schedule", "linear"),
        "num_train_timesteps": theirs.get("num_train_timesteps", TIMES),
        "trained_betas": theirs.get("trained_betas") and "of its own",
    }
    known: tuple[list[Any], ...] = (OF_TABLES, [*targets], [*tables], [TIMES], [None])
    for (key, value), values in zip(asked.items(), known, strict=True):
        if value not in values:
            raise ValueError(f"{source}: {key} {value!r} has no counterpart here")
    name = tables[asked["beta_schedule"]]
    betas = BETAS_OF_HEUN if theirs["_class_name"] in HEUN else BETAS
    ends = {} if name == "cosine" else {key: theirs.get(key, usual) for key, usual in betas.items()}
    given = {"name": name, "zero_snr": bool(theirs.get("rescale_betas_zero_snr")), **ends}
    table = choose(SCHEDULES, given, source, SCHEDULES[name]())
    return table, ProcessConfig(target=targets[asked["prediction_type"]])
