"""A run: every section of a configuration file, over the tables of swappable parts. The defaults are the shapes run."""

from dataclasses import dataclass
from typing import Any

from ldm.autoencoders import BOTTLENECKS, AutoencoderConfig, ReconstructionConfig
from ldm.config import choice, section
from ldm.data import DATASETS
from ldm.data.latents import CacheConfig
from ldm.denoisers import DENOISERS
from ldm.diffusion import SCHEDULES, ProcessConfig
from ldm.pipeline import SampleConfig
from ldm.text import TEXT_ENCODERS
from ldm.training.optim import TrainConfig

MIN_EPS_SIGNAL = 1e-3  # alpha(1) below which x0 cannot be told from a predicted noise


@dataclass
class Run:
    out: str = "runs/shapes"  # folder of everything that the run writes
    base: str = ""  # model folder whose networks the training starts from, and whose parts fill missing stages
    data: Any = choice(DATASETS, "shapes", length=50_000)
    autoencoder: AutoencoderConfig = section(
        AutoencoderConfig, channels=8, width=64, multipliers=[1, 2], patch=4, attention=False, norm="channel"
    )
    bottleneck: Any = choice(BOTTLENECKS, "kl", weight=0.03)
    reconstruction: ReconstructionConfig = section(ReconstructionConfig, l2=1.0)
    text: Any = choice(TEXT_ENCODERS, "clip", states="penultimate", layers=2, vision_layers=2)
    denoiser: Any = choice(
        DENOISERS, "unet", multipliers=[1, 1], blocks=1, attention_levels=[1], scale_shift=True, position=True
    )
    schedule: Any = choice(SCHEDULES, "cosine", shift=2.0)
    process: ProcessConfig = section(ProcessConfig)
    cache: CacheConfig = section(CacheConfig)
    sample: SampleConfig = section(SampleConfig, scale=2.0, eta=1.0)
    train_autoencoder: TrainConfig = section(
        TrainConfig, steps=12_000, batch=16, optimizer="muon", lr=3e-3, betas=[0.9, 0.95], warmup=50, ema=0.998
    )
    train_clip: TrainConfig = section(
        TrainConfig, steps=800, batch=256, optimizer="muon", lr=1e-3, betas=[0.9, 0.95], warmup=50, ema=0.99
    )
    train_ldm: TrainConfig = section(
        TrainConfig,
        steps=6_000,
        batch=64,
        optimizer="muon",
        lr=6e-3,
        betas=[0.9, 0.95],
        warmup=100,
        ema=0.999,
        score_every=1_000,
    )

    def __post_init__(self) -> None:
        alpha = self.schedule.build().level(1.0).alpha
        if self.process.target == "eps" and alpha < MIN_EPS_SIGNAL:
            raise ValueError(
                f"process.target eps divides by alpha(1) = {alpha:.1e} of this schedule, which magnifies every error; "
                "use process.target=v or schedule.name=linear"
            )
