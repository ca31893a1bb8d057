"""The latent cache: every image's latent and every distinct caption's text states, written once, read memory-mapped.

Layout of a cache folder: ``latents-00000.safetensors`` ... (``latent`` (n, C, h, w) and ``caption`` (n,), the number
of its caption), ``captions-00000.safetensors`` ... (``tokens`` of captions end to end (sum L, D), ``starts`` (K + 1,),
``pooled`` (K, P)) and ``cache.json`` with how many each has and the fingerprint of what made it. Padding is not stored,
nor a caption twice.

Legend: B batch, C h w latent, K captions of a file, L tokens of a caption, D token width, P pooled width.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ldm.files import save_tensors
from ldm.types import Batch, Condition, Key, TextEncoder

DESCRIPTION = "cache.json"
LAYOUT = 2  # rises when the files' layout changes
AT_ONCE = 2**18  # pixels, of the images that are encoded at once
TEXTS_AT_ONCE = 64
CAPTIONS_A_FILE = 4_096  # as many states are held in memory before they are written


class StaleCache(ValueError):
    """A cache made by another autoencoder, text encoder or data set than asked for."""


class Latents(NamedTuple):
    """A batch of latents (B, C, h, w), scaled for the denoiser, with their text."""

    latent: Tensor
    cond: Condition


class CachedSample(NamedTuple):
    latent: Tensor  # (C, h, w)
    tokens: Tensor  # (L, D)
    pooled: Tensor  # (P,)


@dataclass
class CacheConfig:
    """When latents are kept, and in what portions."""

    use: str = "auto"  # auto (where every image would be encoded more than once) | always | never
    batch: int = 0  # images or captions encoded at once; 0: images of 2^18 pixels, as 4 of 256 x 256; 64 captions
    shard: int = 16_384  # latents a file

    def __post_init__(self) -> None:
        if self.use not in ("auto", "always", "never"):
            raise ValueError(f"use '{self.use}' is not one of auto, always, never")
        if self.batch < 0 or self.shard < 1:
            raise ValueError(f"batch {self.batch} must be at least 0, and shard {self.shard} at least 1")

    def at_once(self, size: int) -> int:
        """How many images of ``size`` pixels a side are encoded at once."""
        return self.batch or max(1, AT_ONCE // size**2)


def write_cache(
    folder: Path,
    samples: Iterator[Batch],
    encode: Callable[[Tensor], Tensor],
    text: TextEncoder,
    fingerprint: dict[str, str],
    config: CacheConfig,
) -> None:
    """Write the cache of ``samples`` into the empty ``folder``; ``encode`` maps images to latents.

    Latents and states are kept in half precision. Raises OSError where the disk is full.
    """
    captions: dict[str, int] = {}
    latents: list[Tensor] = []
    rows: list[int] = []
    counts: list[int] = []

    def flush(least: int) -> None:
        while len(rows) >= least and rows:
            held, number = torch.cat(latents), min(config.shard, len(rows))
            parts = {"latent": held[:number], "caption": torch.tensor(rows[:number], dtype=torch.int32)}
            save_tensors(parts, folder / f"latents-{len(counts):05d}.safetensors")
            latents[:], rows[:] = [held[number:]], rows[number:]
            counts.append(number)

    for batch in samples:
        latents.append(encode(batch.image).half().cpu())  # (B, C, h, w)
        rows += [captions.setdefault(caption, len(captions)) for caption in batch.captions]
        flush(config.shard)
    flush(1)
    told = _write_captions(folder, captions, text, config.batch or TEXTS_AT_ONCE)
    description = {"layout": LAYOUT, "fingerprint": fingerprint, "counts": counts, "captions": told}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _write_captions(folder: Path, captions: Iterable[str], text: TextEncoder, batch: int) -> list[int]:
    """Write what ``text`` says of ``captions``, ``batch`` of them at once; returns how many each file has."""
    counts: list[int] = []
    names = iter(captions)
    while named := list(islice(names, CAPTIONS_A_FILE)):
        tokens, pooled, lengths = [], [], [0]
        for first in range(0, len(named), batch):
            cond = text(named[first : first + batch])
            tokens.append(cond.tokens[cond.mask].half().cpu())  # (sum L, D)
            pooled.append(cond.pooled.half().cpu())  # (B, P)
            lengths += cond.mask.sum(dim=1).tolist()
        starts = torch.tensor(lengths).cumsum(0)  # (K + 1,)
        states = {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled), "starts": starts}
        save_tensors(states, folder / f"captions-{len(counts):05d}.safetensors")
        counts.append(len(named))
    return counts


def cache_bytes(pictures: int, latent: tuple[int, int, int], captions: int, tokens: int, text: tuple[int, int]) -> int:
    """The bytes of the tensors that ``write_cache`` writes; each file adds a header, of some hundred bytes.

    ``latent`` is (C, h, w) and ``text`` (D, P); ``captions`` counts distinct ones, ``tokens`` theirs without padding.
    """
    width, pooled = text
    starts = captions + -(-captions // CAPTIONS_A_FILE)
    return pictures * (2 * prod(latent) + 4) + 2 * (tokens * width + captions * pooled) + 8 * starts


def check_cache(folder: Path, fingerprint: dict[str, str]) -> None:
    """Refuse a cache that something else made.

    Raises:
        StaleCache: names what differs.
    """
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        made_by = {"layout": str(found["layout"]), **found["fingerprint"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StaleCache(f"{folder} is not a complete latent cache; delete it and it is made again") from error
    for name, wanted in {"layout": str(LAYOUT), **fingerprint}.items():
        if made_by.get(name) != wanted:
            raise StaleCache(
                f"{folder} was made with another {name} ({made_by.get(name)}, now {wanted}); "
                "delete it and it is made again, or name another folder"
            )


def _place(starts: list[int], index: int) -> tuple[int, int]:
    """The file that has entry ``index``, and its row there."""
    number = bisect_right(starts, index) - 1
    return number, index - starts[number]


class LatentDataset:
    """The samples of a cache folder, opened lazily in each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self.starts = [0, *accumulate(described["counts"])]  # of the files of latents
        self.caption_starts = [0, *accumulate(described["captions"])]
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: Key) -> CachedSample:
        number, row = _place(self.starts, key.index)
        latents = f"latents-{number:05d}"
        number, caption = _place(self.caption_starts, int(self._part(latents, "caption")[row]))
        captions = f"captions-{number:05d}"
        starts = self._part(captions, "starts")
        start, end = int(starts[caption]), int(starts[caption + 1])
        return CachedSample(
            self._part(latents, "latent")[row],
            self._part(captions, "tokens")[start:end],
            self._part(captions, "pooled")[caption],
        )

    def _part(self, file: str, tensor: str) -> Any:
        """A tensor of the cache, mapped into memory: pages are read when their rows are."""
        place = f"{file}/{tensor}"
        if place not in self._open:
            path = self.folder / f"{file}.safetensors"
            try:
                with safe_open(path, framework="pt") as opened:
                    self._open[place] = opened.get_tensor(tensor)
            except (SafetensorError, OSError) as error:
                raise StaleCache(f"{path} is damaged; delete {self.folder} and it is made again") from error
        return self._open[place]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @staticmethod
    def collate(samples: list[CachedSample]) -> Latents:
        """Samples as one float32 batch, captions padded to the longest."""
        tokens = pad_sequence([sample.tokens for sample in samples], batch_first=True)  # (B, L, D)
        lengths = torch.tensor([len(sample.tokens) for sample in samples])  # (B,)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]  # (B, L)
        pooled = torch.stack([sample.pooled for sample in samples])  # (B, P)
        latent = torch.stack([sample.latent for sample in samples])  # (B, C, h, w)
        return Latents(latent.float(), Condition(tokens.float(), pooled.float(), mask))
