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
    data: Any = choice(DATASETS, "shapes")
    autoencoder: AutoencoderConfig = section(
        AutoencoderConfig, channels=4, width=64, multipliers=[1], patch=4, attention=False
    )
    bottleneck: Any = choice(BOTTLENECKS, "kl", weight=1e-3)
    reconstruction: ReconstructionConfig = section(ReconstructionConfig, l2=1.0)
    text: Any = choice(TEXT_ENCODERS, "clip", layers=2, vision_layers=2, vision_patch=16)
    denoiser: Any = choice(DENOISERS, "dit", patch=2, width=192, depth=6, heads=3, qk_norm=False)
    schedule: Any = choice(SCHEDULES, "cosine")
    process: ProcessConfig = section(ProcessConfig)
    cache: CacheConfig = section(CacheConfig)
    sample: SampleConfig = section(SampleConfig)
    train_autoencoder: TrainConfig = section(TrainConfig, steps=4_000, batch=32, lr=3e-3, warmup=100, ema=0.999)
    train_clip: TrainConfig = section(TrainConfig, steps=500, batch=256, lr=1e-3, warmup=50, ema=0.98)
    train_ldm: TrainConfig = section(TrainConfig, steps=10_000, batch=32, lr=1e-3, warmup=300, ema=0.9995)

    def __post_init__(self) -> None:
        alpha = self.schedule.build().level(1.0).alpha
        if self.process.target == "eps" and alpha < MIN_EPS_SIGNAL:
            raise ValueError(
                f"process.target eps divides by alpha(1) = {alpha:.1e} of this schedule, which magnifies every error; "
                "use process.target=v or schedule.name=linear"
            )
