"""Data sets of images and captions. ``DATASETS`` maps a configuration's name to the dataclass that builds it."""

from ldm.data.folder import FolderConfig
from ldm.data.shapes import ShapesConfig
from ldm.data.shards import ShardsConfig
from ldm.data.stream import StreamConfig

DATASETS = {"shapes": ShapesConfig, "folder": FolderConfig, "shards": ShardsConfig, "stream": StreamConfig}
