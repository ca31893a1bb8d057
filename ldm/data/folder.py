"""A folder of pictures, each with its caption in a text file, in a metadata file, or in its sub-folder's name."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from ldm.data.samples import ImageFiles, SplitOptions
from ldm.data.transforms import IMAGE_SUFFIXES, captions_of, clean_captions, read_image, refuse_outside

log = logging.getLogger(__name__)

METADATA = "metadata.jsonl"


@dataclass
class FolderConfig(SplitOptions):
    """Pictures below ``path``; see ``find_captions`` for where their captions come from."""

    path: str = ""  # the folder, searched with all its sub-folders

    def build(self, split: str) -> "Folder":
        """The "train" or "val" samples; raises ValueError where there is no folder, no picture or no caption."""
        return Folder(self, split)


class Folder(ImageFiles):
    def __init__(self, config: FolderConfig, split: str) -> None:
        self.root = Path(config.path).expanduser()
        if not config.path or not self.root.is_dir():
            raise ValueError(f"there is no folder '{config.path}'; set data.path to the folder that holds the pictures")
        found = find_captions(self.root, list_files(self.root))
        self.names = list(found)
        self.listed = list(found.values())
        super().__init__(config, split, self.names, where=config.path)

    @property
    def fixed(self) -> bool:
        return super().fixed and all(len(captions) == 1 for captions in self.listed)

    def picture(self, row: int) -> Image.Image:
        return read_image(self.root / self.names[row])

    def texts(self, row: int) -> list[str]:
        return self.listed[row]

    def label(self, row: int) -> str:
        return str(self.root / self.names[row])

    def content(self) -> Iterator[object]:
        for row in self.chosen:
            stat = (self.root / self.names[row]).stat()
            yield self.names[row], stat.st_size, stat.st_mtime_ns, self.listed[row]


def list_files(root: Path) -> list[str]:
    """The files below ``root`` as sorted relative names, hidden ones left out; refuses links that lead out of it."""
    inside = root.resolve()
    names = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise ValueError(f"{root}: link '{name}' leads out of the folder; put the file itself there or remove it")
        if path.is_file():
            names.append(name.as_posix())
    return sorted(names)


def find_captions(root: Path, names: list[str]) -> dict[str, list[str]]:
    """The captions of every picture among ``names`` that has one.

    They are the lines of the ``.txt`` file with the picture's stem, or else what ``metadata.jsonl`` says of it. Where
    the folder has neither, the first sub-folder is the picture's class and its name is the caption. Pictures without
    a caption are left out and their number is reported; raises ValueError where none is left.
    """
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ValueError(f"{root}: no pictures here; the endings looked for are {' '.join(IMAGE_SUFFIXES)}")
    known = set(names)
    texts = {image: text for image in images if (text := str(PurePosixPath(image).with_suffix(".txt"))) in known}
    listed = read_metadata(root, set(images)) if METADATA in known else {}
    by_class = not texts and METADATA not in known

    found = {}
    for image in images:
        captions = clean_captions((root / texts[image]).read_bytes()) if image in texts else listed.get(image, [])
        if by_class and "/" in image:
            captions = clean_captions(image.partition("/")[0].replace("_", " "))
        if captions:
            found[image] = captions
    if not found:
        raise ValueError(f"{root}: none of the {len(images)} pictures has a caption; add a .txt file beside each")
    if len(found) < len(images):
        log.warning(
            "%s: %d of %d pictures have no caption and are left out", root, len(images) - len(found), len(images)
        )
    return found


def read_metadata(root: Path, images: set[str]) -> dict[str, list[str]]:
    """The captions that ``metadata.jsonl`` gives to ``images``, from ``file_name`` and ``text`` on each line."""
    listed: dict[str, list[str]] = {}
    for number, line in enumerate((root / METADATA).read_text("utf-8-sig", errors="ignore").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{root / METADATA}, line {number}"
        try:
            node = json.loads(line)
            name = str(node["file_name"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{where}: not an entry like {{"file_name": "a.png", "text": "a caption"}}') from error
        refuse_outside(name, where)
        listed[str(PurePosixPath(name))] = captions_of(node)
    missing = len(listed.keys() - images)
    if missing:
        log.warning("%s: %d of its %d entries name no picture in the folder", root / METADATA, missing, len(listed))
    return listed
