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

    def pictures(self, split: str) -> "Folder":
        """Those samples for who reads no captions: of all pictures, with a caption that is empty."""
        return Folder(self, split, captioned=False)


class Folder(ImageFiles):
    """Pictures under a folder, each with the captions that stand beside it."""

    def __init__(self, config: FolderConfig, split: str, *, captioned: bool = True) -> None:
        self.root = Path(config.path).expanduser()
        if not config.path or not self.root.is_dir():
            raise ValueError(f"there is no folder '{config.path}'; set data.path to the folder that holds the pictures")
        places = CaptionPlaces(self.root, list_files(self.root))
        if not places.images:
            raise ValueError(f"{self.root}: no pictures here; the endings looked for are {' '.join(IMAGE_SUFFIXES)}")
        found = find_captions(places) if captioned else {image: [""] for image in places.images}
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
    names, outside = find_files(root)
    for name in outside:
        raise ValueError(f"{root}: link '{name}' leads out of the folder; put the file itself there or remove it")
    return names


def find_files(root: Path) -> tuple[list[str], list[str]]:
    """The files below ``root``, and the links that lead out of it, as sorted relative names, hidden ones left out."""
    inside = root.resolve()
    names, outside = [], []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            outside.append(name.as_posix())
        elif path.is_file():
            names.append(name.as_posix())
    return sorted(names), sorted(outside)


def find_captions(places: "CaptionPlaces") -> dict[str, list[str]]:
    """The captions of every picture that has one.

    They are the lines of the ``.txt`` file with the picture's stem, or else what ``metadata.jsonl`` says of it. Where
    the folder has neither, the first sub-folder is the picture's class and its name is the caption. Pictures without
    a caption are left out and their number is reported; raises ValueError where none is left.
    """
    root, images = places.root, places.images
    listed = read_metadata(root, set(images)) if places.has_metadata else {}
    found = {image: captions for image in images if (captions := places.captions(image, places.beside(image), listed))}
    if not found:
        raise ValueError(f"{root}: none of the {len(images)} pictures has a caption; add a .txt file beside each")
    if len(found) < len(images):
        log.warning(
            "%s: %d of %d pictures have no caption and are left out", root, len(images) - len(found), len(images)
        )
    return found


class CaptionPlaces:
    """Which of the files ``names`` below ``root`` are pictures, and where the caption of each stands."""

    def __init__(self, root: Path, names: list[str]) -> None:
        known = set(names)
        self.root = root
        self.images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        self.texts = {
            image: text for image in self.images if (text := str(PurePosixPath(image).with_suffix(".txt"))) in known
        }
        self.has_metadata = METADATA in known

    def beside(self, image: str) -> bytes | None:
        """What the text file with the picture's stem holds; None where there is no such file."""
        return (self.root / self.texts[image]).read_bytes() if image in self.texts else None

    def captions(self, image: str, beside: bytes | None, listed: dict[str, list[str]]) -> list[str]:
        """The picture's captions, given what stands ``beside`` it and what the metadata have ``listed``."""
        if beside is not None:
            return clean_captions(beside)
        if not self.texts and not self.has_metadata:
            return clean_captions(image.partition("/")[0].replace("_", " ")) if "/" in image else []
        return listed.get(image, [])


def metadata_lines(root: Path) -> Iterator[tuple[str, str]]:
    """The lines of ``metadata.jsonl`` that are not empty, each after its place, for messages."""
    # not ``splitlines``: JSON may hold U+2028 and its like in a caption
    for number, line in enumerate((root / METADATA).read_text("utf-8-sig", errors="ignore").split("\n"), start=1):
        if line.strip():
            yield f"{root / METADATA}, line {number}", line


def parse_entry(line: str, where: str) -> tuple[str, list[str]]:
    """The picture that a line of metadata names, and its captions; ValueError names ``where`` it is no such entry."""
    try:
        node = json.loads(line)
        name = str(node["file_name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{where}: not an entry like {{"file_name": "a.png", "text": "a caption"}}') from error
    refuse_outside(name, where)
    return str(PurePosixPath(name)), captions_of(node)


def read_metadata(root: Path, images: set[str]) -> dict[str, list[str]]:
    """The captions that ``metadata.jsonl`` gives to ``images``, from ``file_name`` and ``text`` on each line."""
    listed = dict(parse_entry(line, where) for where, line in metadata_lines(root))
    missing = len(listed.keys() - images)
    if missing:
        log.warning("%s: %d of its %d entries name no picture in the folder", root / METADATA, missing, len(listed))
    return listed
