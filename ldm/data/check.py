"""Reading a data set picture by picture to say what it is: the figures of ``Findings``.

Of each picture its name and some numbers (hashes, lengths) are kept, never the picture: some hundred bytes.
"""

import io
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm.data.findings import Cache, Captions, Findings, Pictures, deal, ratio_class, reasons, side_class
from ldm.data.latents import cache_bytes
from ldm.data.samples import SplitOptions, held_out
from ldm.data.stored import Named, Stored, StoredSet
from ldm.data.transforms import BrokenSample, name_hash, opened_image, to_rgb
from ldm.text.clip import Architecture
from ldm.text.vocabulary import Vocabulary, bpe

TIMED_BATCHES, TIMED_SECONDS = 4, 10.0  # whichever comes first
TIMED_PIXELS = 2**19  # of a batch that is timed


@dataclass(frozen=True)
class TextSizes:
    """What of a text encoder settles how long a caption is and what its states take."""

    vocabulary: Vocabulary
    context_length: int
    width: int
    pooled_width: int

    @staticmethod
    def of(architecture: Architecture, vocabulary: Vocabulary) -> "TextSizes":
        return TextSizes(vocabulary, architecture.context_length, architecture.width, architecture.embed_dim)


class Inspection:
    """What has been found in the pictures that ``look`` was given so far."""

    def __init__(self, options: SplitOptions, text: TextSizes) -> None:
        self.options, self.text = options, text
        self.pictures, self.broken = Pictures(), Named()
        self.cut, self.spelled, self.several, self.cut_by_clip = Named(), Named(), 0, 0
        self.keys = array("Q")  # of all listed: the hash that chooses its split
        self.names: list[str] = []  # of the usable ones, as all that follows
        self.files, self.pixels = array("Q"), array("Q")  # hashes
        self.owners, self.texts, self.lengths = (
            array("Q"),
            array("Q"),
            array("Q"),
        )  # of each caption: number among the listed, hash, tokens

    def look(self, stored: Stored) -> None:
        """Read, decode and count one picture."""
        row = len(self.keys)
        self.keys.append(name_hash(stored.name))
        try:
            if stored.broken:
                raise BrokenSample(stored.broken)
            with opened_image(stored.picture) as image:
                rgb = to_rgb(image)
                kind, format_ = kind_of(image), str(image.format)
            content = hash_of(stored.picture)
        except (BrokenSample, OSError) as error:
            self.broken.add(stored.name, error)
            return
        self.names.append(stored.name)
        self.files.append(content)
        self.pixels.append(hash_of(repr(rgb.size).encode() + rgb.tobytes()))
        self.pictures.formats[format_] = self.pictures.formats.get(format_, 0) + 1
        self.pictures.modes.setdefault(kind, Named()).add(stored.name)
        self._measure(rgb, stored.name)
        self.several += len(stored.captions) > 1
        for caption in stored.captions:
            self._read(caption, row, stored.name)

    def _measure(self, image: Image.Image, name: str) -> None:
        found, (width, height) = self.pictures, image.size
        sizes = [size for size in (found.smallest, found.largest, image.size) if size != (0, 0)]
        found.smallest, found.largest = min(sizes, key=_area), max(sizes, key=_area)
        found.sides[side_class(min(image.size))] += 1
        found.ratios[ratio_class(width, height)] += 1
        if min(image.size) < self.options.size:
            found.below_size.add(name, f"{width} x {height}")

    def _read(self, caption: str, row: int, name: str) -> None:
        length, whole = len(self.text.vocabulary.encode(caption)) + 2, len(bpe().encode(caption)) + 2
        if length > self.text.context_length:
            self.cut.add(name, f"{length} tokens")
        if length > whole:
            self.spelled.add(name)
        self.cut_by_clip += whole > self.text.context_length
        self.owners.append(row)
        self.texts.append(hash_of(caption.encode()))
        self.lengths.append(length)

    def findings(
        self, path: str, stored: StoredSet, latent: tuple[int, int, int], ranks: int, workers: int
    ) -> Findings:
        """All that has been found in ``stored``, after its last picture; ``latent`` is (C, h, w) of the cache's."""
        notes = stored.notes
        found = Findings(
            path=path,
            kind=stored.kind,
            captioned=stored.captioned,
            size=self.options.size,
            listed=len(self.keys),
            usable=len(self.names),
            broken=self.broken,
            notes=notes,
            pictures=self.pictures,
            captions=self._captions(),
            same_bytes=repeats(self.files, self.names),
            same_pixels=repeats(self.pixels, self.names),
            archives=deal(notes.archives, ranks, workers) if notes.archives else None,
            cache=self._cache(latent),
            reasons=[],
        )
        found.reasons = reasons(found, self.options.max_broken, ranks, workers)
        return found

    def _captions(self) -> Captions:
        lengths, texts = numbers(self.lengths), numbers(self.texts)
        found = Captions(
            len(texts),
            len(np.unique(texts)),
            self.several,
            self.text.context_length,
            self.cut,
            self.cut_by_clip,
            self.spelled,
        )
        if len(lengths):
            found.median, found.most_of_them, found.longest = (
                int(np.quantile(lengths, share, method="higher")) for share in (0.5, 0.95, 1)
            )
        return found

    def _cache(self, latent: tuple[int, int, int]) -> Cache:
        """A broken picture's place is taken by another, so it counts as a latent, but its caption does not."""
        held = held_out(self.keys, self.options.val_share)
        trained = np.array([owner not in held for owner in self.owners], dtype=bool)
        _, first = np.unique(numbers(self.texts)[trained], return_index=True)
        tokens = numbers(self.lengths)[trained][first].clip(max=self.text.context_length)
        pictures, text = len(self.keys) - len(held), (self.text.width, self.text.pooled_width)
        size = cache_bytes(pictures, latent, len(first), int(tokens.sum()), text)
        return Cache(pictures, len(first), size, exact=not self.several)


def repeats(hashes: "array[int]", names: list[str]) -> Named:
    """The ``names`` whose hash an earlier one has too, each with that one."""
    _, first, place = np.unique(numbers(hashes), return_index=True, return_inverse=True)
    earlier, found = first[place], Named()
    for number in np.flatnonzero(earlier != np.arange(len(names))):
        found.add(names[number], f"as {names[earlier[number]]}")
    return found


def numbers(values: "array[int]") -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def hash_of(content: Path | bytes) -> int:
    """64 bits that depend on the bytes alone."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        digest = file_digest(file, lambda: blake2b(digest_size=8)).digest()
    return int.from_bytes(digest, "big")


def kind_of(image: Image.Image) -> str:
    """The mode of a stored picture, and whether it is transparent or moves: "P transparent"."""
    try:
        moves = getattr(image, "is_animated", False)
    except Exception:  # a second frame that cannot be read, where the first can
        moves = True
    words = [image.mode, *["transparent"] * image.has_transparency_data, *["animated"] * moves]
    return " ".join(words)


def images_per_second(encode: Callable[[Tensor], Tensor], size: int) -> float:
    """How many pictures of ``size`` pixels ``encode`` does a second here; what they show does not matter to it."""
    batch = max(1, TIMED_PIXELS // size**2)
    pixels = torch.rand(batch, 3, size, size) * 2 - 1  # (B, 3, S, S)
    encode(pixels).cpu()  # the first call also sets things up
    start, done = time.perf_counter(), 0
    while done < TIMED_BATCHES and time.perf_counter() - start < TIMED_SECONDS:
        encode(pixels).cpu()  # waits for a GPU
        done += 1
    return done * batch / (time.perf_counter() - start)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
