"""Networks that regress F from a noised latent, its time and the text; a new one is a file and a line here."""

from ldm.denoisers.dit import DiTConfig
from ldm.denoisers.unet import UNetConfig

DENOISERS = {"unet": UNetConfig, "dit": DiTConfig}
