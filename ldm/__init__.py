"""Text-to-image latent diffusion: data -> autoencoder -> latents -> denoiser + process -> sampler -> image."""

__version__ = "0.1.0"
