"""The latent cache: every image's latent and every distinct caption's text states, written once, read memory-mapped.

Layout of a cache folder: ``latents-00000.safetensors`` ... (``latent`` (n, C, h, w) and ``caption`` (n,), its
caption's row), ``captions.safetensors`` (``tokens`` of all captions end to end (sum L, D), ``starts`` (K + 1,),
``pooled`` (K, P)) and ``cache.json`` with the fingerprint of what made it. Padding is not stored, nor a caption twice.

Legend: B batch, C h w latent, K captions, L tokens of a caption, D token width, P pooled width.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
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
LAYOUT = 1  # rises when the files' layout changes


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
    batch: int = 64  # images encoded at once
    shard: int = 16_384  # latents a file

    def __post_init__(self) -> None:
        if self.use not in ("auto", "always", "never"):
            raise ValueError(f"use '{self.use}' is not one of auto, always, never")
        if self.batch < 1 or self.shard < 1:
            raise ValueError(f"batch {self.batch} and shard {self.shard} must be at least 1")


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
    tokens, pooled, lengths = [], [], [0]
    names = iter(captions)
    while part := list(islice(names, config.batch)):
        cond = text(part)
        tokens.append(cond.tokens[cond.mask].half().cpu())  # (sum L, D)
        pooled.append(cond.pooled.half().cpu())  # (B, P)
        lengths += cond.mask.sum(dim=1).tolist()
    starts = torch.tensor(lengths).cumsum(0)  # (K + 1,)
    states = {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled), "starts": starts}
    save_tensors(states, folder / "captions.safetensors")
    description = {"layout": LAYOUT, "fingerprint": fingerprint, "counts": counts, "captions": len(captions)}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def cache_bytes(pictures: int, latent: tuple[int, int, int], captions: int, tokens: int, text: tuple[int, int]) -> int:
    """The bytes of the tensors that ``write_cache`` writes; each file adds a header, of less than a kilobyte in all.

    ``latent`` is (C, h, w) and ``text`` (D, P); ``captions`` counts distinct ones, ``tokens`` theirs without padding.
    """
    width, pooled = text
    return pictures * (2 * prod(latent) + 4) + 2 * (tokens * width + captions * pooled) + 8 * (captions + 1)


def check_cache(folder: Path, fingerprint: dict[str, str]) -> None:
    """Refuse a cache that something else made.

    Raises:
        StaleCache: names what differs.
    """
    try:
        found = json.loads((folder / DESCRIPTION).read_text())
        made_by = {"layout": str(found["layout"]), **found["fingerprint"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StaleCache(f"{folder} is not a complete latent cache; delete it and it is made again") from error
    for name, wanted in {"layout": str(LAYOUT), **fingerprint}.items():
        if made_by.get(name) != wanted:
            raise StaleCache(
                f"{folder} was made with another {name} ({made_by.get(name)}, now {wanted}); "
                "delete it and it is made again, or name another folder"
            )


class LatentDataset:
    """The samples of a cache folder, opened lazily in each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        counts = json.loads((folder / DESCRIPTION).read_text())["counts"]
        self.starts = [0]
        for count in counts:
            self.starts.append(self.starts[-1] + count)
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: Key) -> CachedSample:
        shard = bisect_right(self.starts, key.index) - 1
        row = key.index - self.starts[shard]
        name = f"latents-{shard:05d}"
        caption = int(self._part(name, "caption")[row])
        starts = self._part("captions", "starts")
        start, end = int(starts[caption]), int(starts[caption + 1])
        return CachedSample(
            self._part(name, "latent")[row],
            self._part("captions", "tokens")[start:end],
            self._part("captions", "pooled")[caption],
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
