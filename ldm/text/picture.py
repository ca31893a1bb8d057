"""CLIP's picture tower: what a picture is in the space that it shares with captions (Radford et al. 2021)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.files import load_weights, save_tensors
from ldm.text.clip import ClipConfig

if TYPE_CHECKING:
    from open_clip import CLIP

DESCRIPTION, WEIGHTS = "config.json", "picture.safetensors"


@dataclass(frozen=True)
class PictureArchitecture:
    """What a picture tower is built from, beside its weights."""

    image_size: int  # pixels a side
    width: int
    layers: int
    heads: int
    patch_size: int
    output_dim: int  # P


class ClipPicture(nn.Module):
    """The picture tower that was trained beside a text encoder of ours, frozen."""

    def __init__(self, architecture: PictureArchitecture) -> None:
        from open_clip.transformer import VisionTransformer  # takes seconds to import

        super().__init__()
        self.architecture = architecture
        self.tower = VisionTransformer(**asdict(architecture), mlp_ratio=4.0)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The embeddings (B, P), of unit length, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: they are of another size than it was trained on.
        """
        size = self.architecture.image_size
        if images.shape[2:] != (size, size):
            height, width = images.shape[2:]
            raise ValueError(f"CLIP knows pictures of {size} x {size} here; this one is {height} x {width}: resize it")
        embedding: Tensor = self.tower(images)
        return nn.functional.normalize(embedding, dim=1)

    @staticmethod
    def from_clip(clip: "CLIP", config: ClipConfig, image_size: int) -> "ClipPicture":
        """A copy of the picture tower of ``clip``, which ``build_clip`` made of the same config and size."""
        sizes = (config.vision_width, config.vision_layers, config.vision_heads, config.vision_patch, config.embed_dim)
        picture = ClipPicture(PictureArchitecture(image_size, *sizes))
        picture.tower.load_state_dict(clip.visual.state_dict())
        return picture

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``picture.safetensors``, in ``dtype`` where given."""
        (folder / DESCRIPTION).write_text(json.dumps(asdict(self.architecture)) + "\n", encoding="utf-8")
        save_tensors(self.tower.state_dict(), folder / WEIGHTS, dtype)

    @staticmethod
    def load(folder: Path) -> "ClipPicture":
        """The tower that ``save`` wrote, in float32; ValueError names the file that does not fit."""
        path = folder / DESCRIPTION
        try:
            picture = ClipPicture(PictureArchitecture(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} does not describe a picture tower: {error}") from error
        load_weights(picture.tower, folder / WEIGHTS)
        return picture
