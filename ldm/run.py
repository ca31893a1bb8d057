"""A run: every section of a configuration file, over the tables of swappable parts. The defaults are the shapes run."""

from dataclasses import dataclass
from math import hypot
from typing import Any

from ldm.autoencoders import BOTTLENECKS, AdversarialConfig, AutoencoderConfig, ReconstructionConfig, RobustnessConfig
from ldm.config import at_home, choice, section
from ldm.data import DATASETS
from ldm.data.latents import CacheConfig
from ldm.denoisers import DENOISERS
from ldm.denoisers.classifier import ClassifierConfig
from ldm.denoisers.control import ControlConfig
from ldm.diffusion import SCHEDULES, TARGETS, TIMES, WEIGHTS, ProcessConfig
from ldm.diffusion.few_steps import OBJECTIVES
from ldm.diffusion.guidance import GuidanceConfig
from ldm.diffusion.times import ImportanceConfig, UniformConfig
from ldm.priors import PriorConfig
from ldm.samplers import SAMPLERS
from ldm.sampling import SampleConfig, Sampling
from ldm.text import TEXT_ENCODERS
from ldm.training.optim import TrainConfig
from ldm.unclip import UnclipConfig

MIN_SIGNAL = 1e-3  # share of x0 in what F and x say together at t = 1, below which x0 cannot be told


@dataclass
class Run(Sampling):
    """Everything that the scripts ask; the fields of ``Sampling`` say how the finished model draws."""

    sampler: Any = choice(SAMPLERS, "dpm_solver_pp", eta=2.5)
    guidance: GuidanceConfig = section(GuidanceConfig, scale=3.0, interval=[0.4, 0.8])
    sample: SampleConfig = section(SampleConfig, steps=30, batch=64)
    out: str = "runs/shapes"  # folder of everything that the run writes
    base: str = ""  # model folder whose networks the training starts from, and whose parts fill missing stages
    decoder_only: bool = False  # the base's latents, and denoisers of them, go on being right
    data: Any = choice(DATASETS, "shapes", length=150_000)
    autoencoder: AutoencoderConfig = section(
        AutoencoderConfig, channels=4, width=64, multipliers=[1], patch=4, attention=False, norm="channel"
    )
    bottleneck: Any = choice(BOTTLENECKS, "kl", weight=0.2, std=0.5)
    reconstruction: ReconstructionConfig = section(ReconstructionConfig, l2=1.0)
    adversarial: AdversarialConfig = section(AdversarialConfig)
    robustness: RobustnessConfig = section(RobustnessConfig)
    text: Any = choice(TEXT_ENCODERS, "clip", states="words", layers=3, vision_layers=2, vision_patch=16, layout=10.0)
    denoiser: Any = choice(
        DENOISERS,
        "unet",
        width=48,
        multipliers=[1, 2, 3],
        blocks=1,
        attention_levels=[1],
        pooled=False,
        qk_norm=True,
        scale_shift=True,
        position=True,
    )
    schedule: Any = choice(SCHEDULES, "flow", shift=1.5)
    process: ProcessConfig = section(ProcessConfig)
    objective: Any = choice(OBJECTIVES, "denoising")  # which x0 the denoiser is asked for
    weight: Any = choice(WEIGHTS, "plain")  # of the training loss, by noise level
    times: Any = choice(TIMES, "logit_normal")  # at which a batch is trained
    classifier: ClassifierConfig = section(ClassifierConfig)
    control: ControlConfig = section(ControlConfig)  # what a ControlNet follows
    prior: PriorConfig = section(PriorConfig)  # of the codes of a first stage that has some
    unclip: UnclipConfig = section(UnclipConfig)
    cache: CacheConfig = section(CacheConfig)
    train_autoencoder: TrainConfig = section(
        TrainConfig,
        steps=4_000,
        batch=32,
        optimizer="muon",
        lr=4e-3,
        decay="linear",
        betas=[0.9, 0.95],
        warmup=50,
        ema=0.998,
    )
    train_clip: TrainConfig = section(
        TrainConfig, steps=600, batch=256, optimizer="muon", lr=2e-3, betas=[0.9, 0.95], warmup=50, ema=0.99
    )
    train_ldm: TrainConfig = section(
        TrainConfig,
        steps=4_400,
        batch=64,
        optimizer="muon",
        lr=6e-3,
        decay="linear",
        betas=[0.9, 0.95],
        muon_iterations=3,
        warmup=100,
        ema=0.999,
        score_every=1_000,
    )
    train_classifier: TrainConfig = section(
        TrainConfig, steps=2_000, batch=64, optimizer="muon", lr=3e-3, betas=[0.9, 0.95], warmup=50, ema=0.99
    )
    train_control: TrainConfig = section(
        TrainConfig, steps=600, batch=16, optimizer="muon", lr=3e-3, betas=[0.9, 0.95], warmup=50, ema=0.99
    )
    train_prior: TrainConfig = section(
        TrainConfig, steps=2_000, batch=64, optimizer="muon", lr=3e-3, betas=[0.9, 0.95], warmup=50, ema=0.99
    )

    train_unclip: TrainConfig = section(TrainConfig, steps=2_000, batch=256, lr=1e-3, warmup=50, ema=0.99)

    @property
    def sampling(self) -> Sampling:
        """How the finished model draws."""
        return Sampling(self.sampler, self.grid, self.guidance, self.sample)

    def check_autoencoder(self) -> None:
        """Raise ValueError where the training of a first stage would not be what its settings ask for.

        Not on loading: what was trained with such a setting is as good as any.
        """
        self.check_size(self.autoencoder.factor)
        self.reconstruction.check(self.data.size)
        if self.decoder_only and self.robustness.contractive:
            raise ValueError(
                f"robustness.contractive {self.robustness.contractive} is a price on the encoder, which decoder_only "
                "keeps as it is; set it to 0"
            )
        start, steps = self.adversarial.start, self.train_autoencoder.steps
        if self.adversarial.weight and start >= steps:
            raise ValueError(
                f"adversarial.start {start} is not before the end of train_autoencoder.steps {steps}, so the "
                f"discriminator is never used; try adversarial.start={steps // 2}, or more steps"
            )
        for name in ("free_bits", "warmup"):
            value = getattr(self.bottleneck, name, 0)
            if value and not self.bottleneck.weight:
                raise ValueError(f"bottleneck.{name} {value} of a KL of weight 0 does nothing; set it to 0")

    def check_denoiser(self) -> None:
        """Raise ValueError where a setting would spoil the training of a denoiser."""
        self.process.check(self.schedule.build())
        if self.unclip.decoder and not self.denoiser.pooled:
            raise ValueError("denoiser.pooled=false: unclip.decoder tells the embedding in its place; set it to true")
        if self.unclip.decoder and self.cache.use == "always":
            raise ValueError("cache.use=always: no cache holds the embeddings of unclip.decoder; set it to never")
        if self.process.learned_variance:
            even = isinstance(self.times, UniformConfig | ImportanceConfig)
            if not even or self.process.offset_noise or self.process.input_perturbation:
                raise ValueError(
                    "process.learned_variance=true learns by the variational bound, which wants steps drawn evenly and "
                    "no other noise; set times=uniform, process.offset_noise=0 and process.input_perturbation=0"
                )

    def check_size(self, factor: int) -> None:
        """Raise ValueError where networks that shrink a picture by ``factor`` cannot be given one of ``data.size``."""
        size = self.data.size
        if size % factor:
            raise ValueError(
                f"data.size {size} is not a multiple of {factor}, by which the networks shrink a picture; try "
                f"data.size={max(factor, round(size / factor) * factor)}"
            )

    def __post_init__(self) -> None:
        self.out, self.base = at_home(self.out), at_home(self.base)
        if self.decoder_only and not self.base:
            raise ValueError("decoder_only needs a base whose encoder it keeps; give base=MODEL")
        for name, stage in vars(self).items():
            if not isinstance(stage, TrainConfig) or stage is self.train_ldm:
                continue
            if stage.shard:
                raise ValueError(f"{name}.shard=true: only the denoiser is sharded (train_ldm.shard); set it to false")
            if stage.score_every:
                raise ValueError(
                    f"{name}.score_every: only the denoiser is scored (train_ldm.score_every); set it to 0"
                )
        schedule = self.schedule.build()
        noisiest = schedule.level(1.0)
        a, b = (float(part) for part in TARGETS[self.process.target](noisiest))
        if abs(noisiest.alpha * b - noisiest.sigma * a) < MIN_SIGNAL * hypot(a, b):
            raise ValueError(
                f"process.target {self.process.target} divides by alpha(1) = {noisiest.alpha:.1e} of this schedule, "
                "which magnifies every error; use process.target=v or schedule.name=linear"
            )
        if getattr(self.sampler, "variance", "") == "learned" and not self.process.learned_variance:
            raise ValueError("sampler.variance=learned asks for what no network says without process.learned_variance")
        if self.reconstruction.bernoulli and not self.autoencoder.bounded:
            raise ValueError("reconstruction.bernoulli wants pictures inside (-1, 1); set autoencoder.bounded=true")
        try:
            self.adversarial.check(self.data.size)
        except ValueError as error:
            raise ValueError(f"adversarial: {error}") from error
        try:
            self.grid(schedule, self.sample.steps)
        except ValueError as error:
            raise ValueError(f"grid and sample.steps: {error}") from error
