"""Grids of images as one PNG."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ldm.data.transforms import to_images


def above(images: Tensor, others: Tensor, columns: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] for ``grid``: a row of them, a row of as many ``others`` below it, and so on.

    Rows that are not full end in white.
    """
    parts = []
    for row, below in zip(images.split(columns), others.split(columns), strict=True):
        blank = row.new_ones(columns - len(row), *row.shape[1:])
        parts += [row, blank, below, blank]
    return torch.cat(parts)


def grid(images: Tensor, columns: int, path: Path | None = None) -> Image.Image:
    """Images (B, 3, H, W) in [-1, 1] in rows of ``columns`` with a thin gap; saved to ``path`` where one is given."""
    sheet = make_grid(images.float().clamp(-1, 1).cpu(), nrow=columns, padding=2, pad_value=1.0)  # (3, H', W')
    picture = to_images(sheet[None])[0]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return picture
