"""Priors over the codes of a first stage, from which new pictures are drawn."""

from ldm.priors.pixelcnn import PixelCNN, PixelCNNConfig, draw, nats
from ldm.priors.prior import CodePrior, PriorConfig

__all__ = ["CodePrior", "PixelCNN", "PixelCNNConfig", "PriorConfig", "draw", "nats"]
