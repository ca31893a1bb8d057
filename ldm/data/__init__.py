"""Data sets of images and captions. ``DATASETS`` maps a configuration's name to the dataclass that builds it."""

from typing import Any

from ldm.data.folder import FolderConfig
from ldm.data.shapes import ShapesConfig
from ldm.data.shards import ShardsConfig
from ldm.data.stream import StreamConfig

DATASETS = {"shapes": ShapesConfig, "folder": FolderConfig, "shards": ShardsConfig, "stream": StreamConfig}


def pictures_of(config: Any, split: str) -> Any:
    """The "train" or "val" samples of a data set for who reads no captions: of a folder also pictures without one.

    Raises:
        ValueError: there are none.
    """
    return config.pictures(split) if isinstance(config, FolderConfig) else config.build(split)
