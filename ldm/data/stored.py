"""Every stored picture of a folder or of tar archives, one after another, and what training would stop at.

The data sets refuse the first thing that must not be; here it is noted, by name, and reading goes on. What a caption
file, a member of an archive or a broken picture is, the data sets' own functions say.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ldm.data.folder import METADATA, CaptionPlaces, find_files, metadata_lines, parse_entry
from ldm.data.shards import KINDS, Headers, find_shards, image_in, is_image, locate, num_lost, read_at, read_headers
from ldm.data.transforms import BrokenSample, encoding_of, parse_captions

SHOWN = 20  # of each kind of fault, by name


class Stored(NamedTuple):
    """A picture that the data set lists, with all its captions."""

    name: str  # by which validation samples are chosen
    picture: Path | bytes
    captions: list[str]
    broken: str = ""  # why it cannot be used, where that is known before the picture is decoded


@dataclass
class Named:
    """How many there are, and the first of them by name."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object = "") -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(shown(f"{name}: {reason}" if reason else name))


@dataclass
class Notes:
    """What there is to say of a data set beside the pictures that it lists."""

    refused: Named = field(default_factory=Named)  # what ends a training before its first step
    repeated: Named = field(default_factory=Named)  # keys and entries that come twice
    missing: Named = field(default_factory=Named)  # pictures without a caption
    empty: Named = field(default_factory=Named)  # pictures whose caption is empty
    alone: Named = field(default_factory=Named)  # captions without a picture
    unread: Named = field(default_factory=Named)  # files and members that are neither, never opened: pickles, weights
    mended: Named = field(default_factory=Named)  # captions that lose bytes, because they are not UTF-8
    cut: Named = field(default_factory=Named)  # archives without an end mark
    lost: int = 0  # samples that are missing in those, as far as is known
    archives: list[int] = field(default_factory=list)  # samples of each archive

    def mark_mended(self, name: str, text: bytes) -> None:
        try:
            text.decode(encoding_of(text))
        except ValueError as error:
            self.mended.add(name, error)


class StoredSet(ABC):
    """The listed pictures in order; ``notes`` is complete once they have all been given."""

    kind: str  # its name in DATASETS
    captioned = True  # pictures without a caption are noted and not listed

    def __init__(self) -> None:
        self.notes = Notes()

    @abstractmethod
    def __iter__(self) -> Iterator[Stored]:
        """Each picture once; no fault of the stored data ends it."""


class StoredFolder(StoredSet):
    """A folder as ``FolderConfig`` reads it; unless ``captioned``, as for a first stage, with no caption read."""

    kind = "folder"

    def __init__(self, root: Path, *, captioned: bool = True) -> None:
        super().__init__()
        self.root, self.captioned = root, captioned

    def __iter__(self) -> Iterator[Stored]:
        notes, (names, outside) = self.notes, find_files(self.root)
        for name in outside:
            notes.refused.add(name, "a link that leads out of the folder")
        places = CaptionPlaces(self.root, names)
        if not self.captioned:
            yield from (Stored(image, self.root / image, []) for image in places.images)
            return
        known = {*places.images, *places.texts.values(), METADATA}
        for name in names:
            if name not in known:
                (notes.alone if name.endswith(".txt") else notes.unread).add(name)
        listed = self._listed(set(places.images)) if places.has_metadata else {}
        for image in places.images:
            try:
                beside = places.beside(image)
            except OSError as error:
                notes.refused.add(places.texts[image], error)
                continue
            captions = places.captions(image, beside, listed)
            if not captions:
                (notes.missing if beside is None and image not in listed else notes.empty).add(image)
                continue
            if beside is not None:
                notes.mark_mended(places.texts[image], beside)
            yield Stored(image, self.root / image, captions)

    def _listed(self, images: set[str]) -> dict[str, list[str]]:
        """What ``read_metadata`` reads, without what it refuses."""
        found: dict[str, list[str]] = {}
        with suppress(OSError):  # unreadable files are told below
            self.notes.mark_mended(METADATA, (self.root / METADATA).read_bytes())
        try:
            for where, line in metadata_lines(self.root):
                try:
                    name, captions = parse_entry(line, where)
                except ValueError as error:
                    self.notes.refused.add(str(error))
                    continue
                if name in found:
                    self.notes.repeated.add(name, f"listed again in {PurePosixPath(where).name}")
                if name not in images:
                    self.notes.alone.add(name, f"{PurePosixPath(where).name} names no picture of the folder")
                found[name] = captions
        except OSError as error:
            self.notes.refused.add(METADATA, error)
        return found


class StoredShards(StoredSet):
    """Archives as ``ShardsConfig`` reads them, and ``StreamConfig`` nearly so; nothing is written beside them."""

    kind = "shards"

    def __init__(self, shards: list[Path]) -> None:
        super().__init__()
        self.shards = shards

    def __iter__(self) -> Iterator[Stored]:
        for shard in self.shards:
            self.notes.archives.append(0)
            try:
                if not shard.is_file():
                    raise OSError("not a file")
                headers = read_headers(shard)
            except OSError as error:
                self.notes.refused.add(str(shard), error)
                continue
            self._note(shard, headers)
            yield from self._samples(shard, headers)

    def _note(self, shard: Path, headers: Headers) -> None:
        for name in headers.outside:
            self.notes.refused.add(f"{shard.name}/{name}", "leads out of the data set")
        for name in headers.repeated:
            self.notes.repeated.add(f"{shard.name}/{name}", "there is a picture or a member of that name before it")
        if not headers.whole:
            lost = num_lost(shard, headers)
            self.notes.lost += lost
            self.notes.cut.add(str(shard), f"{len(headers.samples)} samples are whole, at least {lost} lost")

    def _samples(self, shard: Path, headers: Headers) -> Iterator[Stored]:
        notes = self.notes
        for key, members in headers.samples.items():
            name, row = f"{shard.name}/{key}", locate(key, members)
            for ending in members:
                if not is_image(ending) and ending not in KINDS:
                    notes.unread.add(f"{name}.{ending}")
            if row is None:
                has_text = any(kind in members for kind in KINDS)
                if image_in(members):
                    (notes.empty if has_text else notes.missing).add(name)
                elif has_text:
                    notes.alone.add(name)
                continue
            notes.archives[-1] += 1
            kind = KINDS[row.kind]
            try:
                text = read_at(shard, row.caption, row.caption_size)
                captions, picture = parse_captions(text, kind), read_at(shard, row.image, row.image_size)
            except BrokenSample as error:
                yield Stored(name, b"", [], str(error))
                continue
            if kind == "txt":
                notes.mark_mended(f"{name}.txt", text)
            yield Stored(name, picture, captions)


def find_stored(path: str, *, captioned: bool = True) -> StoredSet:
    """The data set at ``path``: the archives of a folder that holds any, or of a pattern; or else a folder of pictures.

    Raises:
        ValueError: there is nothing of that name, or archives are to be read without captions.
    """
    root = Path(path).expanduser()
    if not path:
        raise ValueError("there is no name; give a folder of pictures, or archives")
    if root.is_dir() and not any(root.glob("*.tar")):
        return StoredFolder(root, captioned=captioned)
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(f"'{path}' is not on this machine; fetch some of its archives, and check those")
    if not root.is_dir() and ".tar" not in path:
        raise ValueError(
            f"there is no folder '{path}'; name one with pictures or .tar files, or archives: '{path}/*.tar'"
        )
    if not captioned:
        raise ValueError(f"{path}: in archives only pictures with a caption are read; leave --no-captions out")
    return StoredShards(find_shards(path))


def shown(text: str) -> str:
    """``text`` with what no terminal should be sent (control characters, broken Unicode) spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
