"""The stages of a run, a file each: what a training script builds, from what, and where it writes it.

    <out>/autoencoder/   the first stage          <out>/cache/      latents and text states
    <out>/text/          the text encoder         <out>/model/      everything that txt2img needs
    <out>/picture/       CLIP's other tower       <out>/unclip/     unCLIP's prior, with that tower
    <out>/classifier/    of noised latents, for classifier guidance
    <out>/prior/         of the codes of the first stage
    <out>/control/       a ControlNet of a whole model
    <out>/model-best/    the model at its best score, where it is scored while it trains
    <out>/training/<stage>/  log, sample grids, curves, and the checkpoints that a run resumes from

A stage that the run has not trained is taken from the base model, or else from the shipped one, where the configuration
asks for the same network, and it is said so.
"""

from ldm.stages.autoencoder import train_autoencoder
from ldm.stages.classifier import train_classifier
from ldm.stages.clip import train_clip
from ldm.stages.control import train_control
from ldm.stages.denoiser import train_ldm
from ldm.stages.prior import train_prior
from ldm.stages.unclip import train_unclip

__all__ = [
    "train_autoencoder",
    "train_classifier",
    "train_clip",
    "train_control",
    "train_ldm",
    "train_prior",
    "train_unclip",
]
