"""How far a set of pictures is from another: FID and KID, on torchmetrics and torch-fidelity.

Legend: N pictures, S side, B batch, D features.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.evaluation.benchmark import AT_ONCE, Pictures
from ldm.evaluation.weights import eval_extra, find_weights, fitting
from ldm.text.weights import read_weights

KID_SUBSETS = 100
KID_SUBSET = 1_000  # pictures of a subset, where there are at least twice as many


@dataclass(frozen=True)
class Features:
    """What an extractor makes of a set of pictures, and what figures from it are stamped with."""

    values: Tensor  # (N, D) float64
    extractor: str  # which it is and how it resizes
    sha256: str  # of the pictures, 16 digits


class Inception(nn.Module):
    """Features (B, 2048) of pictures (B, 3, S, S) uint8: the pool of the Inception that published FIDs are made with.

    Pictures of any side are resized to 299 x 299 as in torch-fidelity and the first FID: bilinear in TensorFlow 1's
    manner, which places a pixel by its upper left corner, and without antialiasing. torchmetrics' default is another.

    Raises:
        MissingWeights: ``weights`` is no file or, where it is left out, torch's hub cache has none.
        ValueError: the file holds something else, or torchmetrics or torch-fidelity is not installed.
    """

    def __init__(self, weights: Path | None = None) -> None:
        with eval_extra():
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
            from torchmetrics.image.fid import NoTrainInceptionV3
        super().__init__()
        path = find_weights(weights, URL_INCEPTION_V3, "--inception")
        # torch-fidelity reads its file in the way that runs any code in it: it gets a copy of tensors read safely
        safe = io.BytesIO()
        torch.save(read_weights(path), safe)
        safe.seek(0)
        with fitting(path, "torch-fidelity's Inception v3"):
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], safe, antialias=False)  # type: ignore[arg-type]
        digest = sha256(path.read_bytes()).hexdigest()[:8]
        self.described = f"Inception v3 ({digest}), 299 x 299 by TensorFlow 1's bilinear without antialiasing"

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.network(pictures)
        return found


class _Ready(nn.Module):
    """torchmetrics' place for a feature extractor, where the features (N, D) themselves are handed in."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@torch.inference_mode()
def features(
    pictures: Pictures,
    extractor: nn.Module,
    *,
    batch: int = AT_ONCE,
    progress: Callable[[int], object] | None = None,
) -> Features:
    """What ``extractor``, pictures (B, 3, S, S) uint8 to (B, D), makes of pictures (N, S, S, 3).

    A reference set that many sets are compared with needs it once. ``progress`` is called with each batch's size.
    """
    device = next(extractor.parameters(), torch.empty(0)).device
    values = []
    for part in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(batch):  # (B, 3, S, S)
        values.append(extractor(part.to(device)).double().cpu())  # (B, D)
        if progress is not None:
            progress(len(part))
    described = extractor.described if isinstance(extractor, Inception) else type(extractor).__name__
    pixels = np.ascontiguousarray(pictures)
    digest = sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]
    return Features(torch.cat(values), described, digest)


def distances(generated: Features, reference: Features, seed: int = 0) -> dict[str, Any]:
    """FID and KID of generated from reference pictures, with what they depend on.

    FID (Heusel et al. 2017, arXiv:1706.08500, Eq. 6) is too large, the more so the fewer the pictures: compare figures
    of equal numbers only. KID (Binkowski et al. 2018, arXiv:1801.01401) is right on average for any number: the mean
    over 100 random subsets of 1,000 pictures, or of half of the smaller set; ``kid_std`` is how the subsets spread.

    Raises:
        ValueError: a set has fewer than two pictures, the extractors differ, or torchmetrics is not installed.
    """
    with eval_extra():
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    if generated.extractor != reference.extractor:
        raise ValueError(f"features of {generated.extractor} cannot be compared with those of {reference.extractor}")
    least = min(len(generated.values), len(reference.values))
    if least < 2:
        raise ValueError(f"FID and KID of {least} pictures: at least 2 are needed, and thousands for a steady figure")
    ready, subset = _Ready(reference.values.shape[1]), max(2, min(KID_SUBSET, least // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KID says that it keeps all features, which are there anyway
        fid = FrechetInceptionDistance(ready)
        kid = KernelInceptionDistance(ready, subsets=KID_SUBSETS, subset_size=subset)
    for metric in (fid, kid):
        metric.update(reference.values, real=True)
        metric.update(generated.values, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(seed)
        mean, std = kid.compute()
    return {
        "fid": float(fid.compute()),
        "kid": float(mean),
        "kid_std": float(std),
        "kid_subset": subset,
        "generated": len(generated.values),
        "reference": len(reference.values),
        "reference_sha256": reference.sha256,
        "extractor": reference.extractor,
    }
