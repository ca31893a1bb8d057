"""What map-style data sets of stored pictures share: held-out samples, and what happens to one that cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from PIL import Image

from ldm.data.transforms import VERSION, BrokenSample, ImageOptions, Tally, name_hash
from ldm.types import Key, Sample


@dataclass
class SplitOptions(ImageOptions):
    """Those options for a set whose samples are known by name before they are read."""

    val_share: float = 0.02  # share of the samples held out for validation; 0, none, is not for training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share {self.val_share} is not a share in [0, 1); try val_share=0.02")


def in_split(names: Sequence[str], split: str, val_share: float) -> list[int]:
    """The indices of the ``names`` that belong to ``split``; the two splits share none and leave none out.

    A name is held out for validation when its hash falls into the lowest ``val_share`` of all hashes, so samples added
    later do not move the others. Of two names or more at least one is held out and at least one is trained on. The
    order is that of the hashes, so that the first samples are a fair draw of all, and not one folder's.
    """
    hashes = [name_hash(name) for name in names]
    held = held_out(hashes, val_share)
    return [i for i in sorted(range(len(names)), key=hashes.__getitem__) if (i in held) == (split == "val")]


def held_out(hashes: Sequence[int], val_share: float) -> set[int]:
    """The indices of the samples kept for validation, by the ``name_hash`` of each."""
    held = {i for i, number in enumerate(hashes) if number < val_share * 2**64}
    if val_share > 0:
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        held = held.union(order[:1]).difference(order[-1:])
    return held


class ImageFiles(ABC):
    """A map-style data set of stored pictures. A subclass lists the samples, and reads one of them."""

    def __init__(self, options: SplitOptions, split: str, names: Sequence[str], where: str) -> None:
        self.transform = options.transform(split)
        self.options, self.split = options, split
        self.chosen = np.array(in_split(names, split, options.val_share), dtype=np.int64)
        if not len(self.chosen):
            raise ValueError(
                f"{where}: with {len(names)} samples and val_share={options.val_share} none is left for '{split}'; "
                "add samples or raise val_share"
            )
        self.tally = Tally("samples", options.max_broken, floor=min(100, len(self.chosen)))
        self.broken: set[int] = set()  # rows, so that each is read and counted once

    @abstractmethod
    def picture(self, row: int) -> Image.Image:
        """The picture of the sample listed at ``row``; raises BrokenSample."""

    @abstractmethod
    def texts(self, row: int) -> list[str]:
        """All captions of the sample listed at ``row``; raises BrokenSample."""

    @abstractmethod
    def label(self, row: int) -> str:
        """Where the sample at ``row`` is stored, for messages."""

    @abstractmethod
    def content(self) -> Iterator[object]:
        """Plain values that change when the stored samples do."""

    @property
    def fixed(self) -> bool:
        """Whether a sample is the same in every epoch; a set with several captions for a picture says so itself."""
        return self.options.crop == "center" and not self.options.flip

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> Sample:
        """The sample at ``key.index``, or the next readable one of the split: a function of (seed, epoch, index) alone.

        Validation samples are the same in every epoch. Raises ValueError once more than ``max_broken`` are broken.
        """
        if not 0 <= key.index < len(self):
            raise IndexError(f"index {key.index} is not in the {len(self)} samples of '{self.split}'")
        rng = np.random.default_rng([self.options.seed, key.epoch if self.split == "train" else 0, key.index])
        for step in range(len(self)):
            row = int(self.chosen[(key.index + step) % len(self)])
            if row in self.broken:
                continue
            try:
                image, captions = self.picture(row), self.texts(row)
            except BrokenSample as error:
                self.broken.add(row)
                self.tally.count_broken(self.label(row), error)
                continue
            self.tally.read += 1
            return Sample(self.transform(image, rng), captions[rng.integers(len(captions))])
        raise ValueError(f"none of the {len(self)} samples of '{self.split}' can be read")

    def captions(self, count: int) -> Iterator[str]:
        """The captions of the first ``count`` samples, without their pictures."""
        for row in self.chosen[:count]:
            with suppress(BrokenSample):
                yield from self.texts(int(row))

    def fingerprint(self) -> str:
        """A short hash of the stored samples, the split and the settings that shape a sample."""
        options = self.options
        settings = (VERSION, options.size, options.crop, options.flip, options.seed, options.val_share, self.split)
        digest = blake2b(repr(settings).encode(), digest_size=8)
        for part in self.content():
            digest.update(repr(part).encode("utf-8", "surrogateescape"))
        return f"{type(self).__name__.lower()}-{self.split}-{digest.hexdigest()}"
