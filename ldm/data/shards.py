"""Local tar archives as img2dataset writes them (000000001.jpg, .txt, .json), read in any order.

The headers and captions of each archive are read once, and where all lies is kept beside it in a ``.idx.json``; a
sample is then one seek away.
"""

import json
import logging
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import numpy as np
from braceexpand import braceexpand
from PIL import Image
from webdataset.tariterators import base_plus_ext

from ldm.data.samples import ImageFiles, SplitOptions
from ldm.data.transforms import (
    IMAGE_SUFFIXES,
    BrokenSample,
    leads_out,
    parse_captions,
    read_image,
    refuse_outside,
)

log = logging.getLogger(__name__)

FORMAT = 2  # of the index file
Members = dict[str, tuple[int, int]]  # ending -> offset and size in bytes of one sample's members
KINDS = ("txt", "json")  # members that may hold the caption, the preferred first


@dataclass
class ShardsConfig(SplitOptions):
    """Tar archives on a local disk. A sample is an image member and the .txt or .json member of the same key."""

    path: str = ""  # a folder of .tar files, or a pattern such as data/{00000..00099}.tar or data/*.tar

    def build(self, split: str) -> "Shards":
        """The "train" or "val" samples; raises ValueError where no archive is found or none holds a sample."""
        return Shards(self, split)


class Row(NamedTuple):
    """Where a sample lies in its archive; offsets and sizes in bytes."""

    key: str
    image: int
    image_size: int
    caption: int
    caption_size: int
    kind: int  # of the caption, an index into KINDS


@dataclass
class ShardIndex:
    """What an archive of ``size`` bytes, changed at ``mtime_ns``, holds."""

    size: int
    mtime_ns: int
    rows: list[Row]
    captionless: int = 0
    cut: bool = False  # it has no end mark, so something is missing
    lost: int = 0  # samples that are missing, as far as is known
    several: int = 0  # samples with more than one caption
    format: int = FORMAT


@dataclass
class Headers:
    """What the headers of an archive say."""

    samples: dict[str, Members] = field(default_factory=dict)  # by key, without one that the archive's end went through
    whole: bool = False  # it runs to its end mark
    torn: int = 0  # samples that its end went through
    outside: list[str] = field(default_factory=list)  # members whose names lead out of the data set
    repeated: list[str] = field(default_factory=list)  # members that come twice, and second pictures of a key


class Shards(ImageFiles):
    """The samples of local archives, by an index of each that is made once."""

    def __init__(self, config: ShardsConfig, split: str) -> None:
        self.shards = find_shards(config.path)
        indices = [index_shard(shard) for shard in self.shards]
        report(self.shards, indices)
        self.stats = [
            (shard.name, index.size, index.mtime_ns) for shard, index in zip(self.shards, indices, strict=True)
        ]
        self.several = any(index.several for index in indices)
        names = [f"{s.name}/{row.key}" for s, index in zip(self.shards, indices, strict=True) for row in index.rows]
        # numbers in one array instead of millions of objects: workers share it, and it pickles fast
        table = [(number, *row[1:]) for number, index in enumerate(indices) for row in index.rows]
        self.table = np.array(table, dtype=np.int64)  # (samples, 6): shard, then Row without its key
        super().__init__(config, split, names, where=config.path)

    @property
    def fixed(self) -> bool:
        return super().fixed and not self.several

    def picture(self, row: int) -> Image.Image:
        shard, image, size, *_ = (int(number) for number in self.table[row])
        return read_image(read_at(self.shards[shard], image, size))

    def texts(self, row: int) -> list[str]:
        shard, _, _, caption, size, kind = (int(number) for number in self.table[row])
        return parse_captions(read_at(self.shards[shard], caption, size), KINDS[kind])

    def label(self, row: int) -> str:
        return f"the picture at byte {self.table[row, 1]} of {self.shards[self.table[row, 0]]}"

    def content(self) -> Iterator[object]:
        yield from self.stats


def find_shards(pattern: str) -> list[Path]:
    """The archives that ``pattern`` names: all in a folder, or those that fit its braces and wildcards, in order."""
    if not pattern:
        raise ValueError("data.path is empty; set it to a folder of .tar files or a pattern like data/{00..99}.tar")
    pattern = str(Path(pattern).expanduser())
    parts = [f"{pattern}/*.tar"] if Path(pattern).is_dir() else list(braceexpand(pattern))
    found: list[Path] = []
    for part in parts:
        root = Path(part).anchor or "."
        shards = sorted(Path(root).glob(str(Path(part).relative_to(root))))
        if not shards:
            raise ValueError(f"there is no archive '{part}'; check data.path")
        found.extend(shards)
    return found


def index_shard(shard: Path) -> ShardIndex:
    """What ``shard`` holds: from the index beside it where its size and time fit, or else from the archive itself."""
    file = shard.with_suffix(".idx.json")
    stat = shard.stat()
    try:
        node = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row(*row) for row in node.pop("rows")]
        index = ShardIndex(rows=rows, **node)
        if (index.size, index.mtime_ns, index.format) == (stat.st_size, stat.st_mtime_ns, FORMAT):
            return index
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # missing, torn or of another version: it is made anew
    index = scan(shard)
    temporary = file.with_name(f"{file.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(index)), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:  # a read-only or full disk costs a scan at each start, no more
        log.warning("%s: the index cannot be kept (%s)", file, error)
        temporary.unlink(missing_ok=True)
    return index


def scan(shard: Path) -> ShardIndex:
    """What ``shard`` holds, from its headers and captions; an archive that ends early is read as far as it goes."""
    stat = shard.stat()
    headers = read_headers(shard)
    for name in headers.outside:
        refuse_outside(name, shard)
    rows = [row for key, members in headers.samples.items() if (row := locate(key, members))]
    pictures = sum(image_in(members) is not None for members in headers.samples.values())
    lost = num_lost(shard, headers)
    counts = (pictures - len(rows), not headers.whole, lost, num_several(shard, rows))
    return ShardIndex(stat.st_size, stat.st_mtime_ns, rows, *counts)


def num_several(shard: Path, rows: list[Row]) -> int:
    """How many of the samples at ``rows`` have more than one caption; of those that cannot be read none has."""
    several = 0
    with shard.open("rb") as file:  # not by ``read_at``: its handle may be of an archive that was there before
        for row in rows:
            file.seek(row.caption)
            with suppress(BrokenSample):
                several += len(parse_captions(file.read(row.caption_size), KINDS[row.kind])) > 1
    return several


def read_headers(shard: Path) -> Headers:
    """What the headers of ``shard`` say, as far as they can be read; nothing is refused."""
    headers, size = Headers(), shard.stat().st_size
    # what tarfile raises where data are missing or make no sense; what was read until there is whole
    nonsense = suppress(tarfile.TarError, ValueError, OverflowError, MemoryError)
    with shard.open("rb") as file, nonsense, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if leads_out(member.name):
                headers.outside.append(member.name)
                continue
            key, ending = base_plus_ext(member.name)
            if key is None or not member.isreg() or member.issparse():
                continue
            members, ending = headers.samples.setdefault(key, {}), ending.lower()
            if ending in members or (is_image(ending) and image_in(members)):
                headers.repeated.append(member.name)
            if member.offset_data + member.size <= size:
                members[ending] = (member.offset_data, member.size)
        file.seek(tar.offset)
        headers.whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if headers.samples and not headers.whole:
        last = next(reversed(headers.samples))
        if locate(last, headers.samples[last]) is None:
            del headers.samples[last]
            headers.torn = 1
    return headers


def num_lost(shard: Path, headers: Headers) -> int:
    """How many samples are missing at the end of ``shard``, as far as is known."""
    pictures = sum(image_in(members) is not None for members in headers.samples.values())
    return 0 if headers.whole else max(headers.torn, num_written(shard) - pictures)


def locate(key: str, members: Members) -> Row | None:
    """The row of the sample ``key``, or None where it has no image or no caption. Other members are never read."""
    image = image_in(members)
    for kind, ending in enumerate(KINDS):
        offset, size = members.get(ending, (0, 0))
        if image and size:
            return Row(key, *image, offset, size, kind)
    return None


def image_in(members: Members) -> tuple[int, int] | None:
    """The offset and size of the image among ``members``."""
    return next((place for ending, place in members.items() if is_image(ending)), None)


def is_image(ending: str) -> bool:
    """Whether a member with that ``ending``, in lower case and without its dot, is a picture."""
    return f".{ending}" in IMAGE_SUFFIXES


def num_written(shard: Path) -> int:
    """How many samples were written to ``shard`` by img2dataset's ``_stats.json`` beside it; 0 without one."""
    try:
        return int(json.loads(shard.with_name(f"{shard.stem}_stats.json").read_text(encoding="utf-8"))["successes"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def report(shards: list[Path], indices: list[ShardIndex]) -> None:
    """Warn of archives that are cut off and of pictures without a caption, with their numbers."""
    for shard, index in zip(shards, indices, strict=True):
        if index.cut:
            log.warning("%s is cut off: %d samples are whole, at least %d lost", shard, len(index.rows), index.lost)
    captionless = sum(index.captionless for index in indices)
    if captionless:
        log.warning("%s: %d pictures have no caption and are left out", shards[0].parent, captionless)


def read_at(shard: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of ``shard`` from ``offset`` on; raises BrokenSample where they cannot be read."""
    try:
        file = opened(shard, os.getpid())
        file.seek(offset)
        return file.read(size)
    except OSError as error:
        raise BrokenSample(str(error)) from error


@lru_cache(maxsize=64)
def opened(shard: Path, process: int) -> BinaryIO:
    """``shard``, opened once by each ``process``: a handle shared by a fork would share its position too."""
    return shard.open("rb")
