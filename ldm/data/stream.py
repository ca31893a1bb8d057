"""Tar archives read from end to end with webdataset: for sets on remote storage, or too large to index.

Only image, .txt and .json members are looked at, and they are decoded here: webdataset's own decoder unpickles.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlparse

import numpy as np
import webdataset as wds
from braceexpand import braceexpand
from torch.utils.data import IterableDataset
from webdataset.utils import pytorch_worker_info

from ldm.data.transforms import (
    IMAGE_SUFFIXES,
    BrokenSample,
    ImageOptions,
    Tally,
    name_hash,
    parse_captions,
    read_image,
    refuse_outside,
)
from ldm.types import Sample

log = logging.getLogger(__name__)

T = TypeVar("T")  # an archive


@dataclass
class StreamConfig(ImageOptions):
    """Tar archives at local paths or URLs. Without ``val_urls`` the first of several is held out for validation."""

    urls: str = ""  # braces allowed: https://host/{00000..00099}.tar
    val_urls: str = ""  # the validation archives, the same way
    shuffle: int = 1_000  # samples, still encoded, in the buffer from which the next is drawn
    allow_pipe: bool = False  # let "pipe:" URLs run their shell command

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle < 1:
            raise ValueError(f"shuffle {self.shuffle} holds no sample; try shuffle=1000, or shuffle=1 for none")
        for url in [*expand(self.urls), *expand(self.val_urls)]:
            self._check(url)

    def _check(self, url: str) -> None:
        scheme = urlparse(url).scheme
        if scheme == "pipe" and not self.allow_pipe:
            raise ValueError(f"'{url}' runs a shell command; set allow_pipe=true if you wrote it yourself")
        if scheme not in {"", "file", *wds.gopen_schemes}:
            raise ValueError(f"'{url}': webdataset cannot open {scheme}: URLs; fetch them with a pipe: command")

    def build(self, split: str) -> "Stream":
        """The "train" or "val" stream; raises ValueError where no archive is left for it."""
        urls, val_urls = hold_out(expand(self.urls), expand(self.val_urls))
        chosen = urls if split == "train" else val_urls
        if not chosen:
            key = "val_urls" if self.urls and split == "val" else "urls"
            raise ValueError(f"no archive for '{split}'; set data.{key}")
        for url in chosen:
            if not urlparse(url).scheme and not Path(url).is_file():
                raise ValueError(f"there is no archive '{url}'; check data.urls and data.val_urls")
        return Stream(self, split, chosen)


class Stream(IterableDataset[Sample]):
    """Samples in archive order for "val", once; for "train" shuffled, pass after pass without end.

    Training archives are dealt out to ranks (from torchrun's environment) and then to loader workers, so ranks may
    see different numbers of samples a pass; as the stream never ends, none waits for another. Crops and flips are a
    function of (seed, epoch, name). Validation archives are dealt out to workers only: every rank reads them all.
    """

    def __init__(self, config: StreamConfig, split: str, urls: list[str]) -> None:
        super().__init__()
        self.transform = config.transform(split)
        self.config, self.split, self.urls = config, split, urls
        self.epoch = 0  # the first pass; a resumed run may start at a later one
        self.tally = Tally("samples", config.max_broken)
        self.archives = Tally("archives", config.max_broken, floor=len(urls))
        self.captionless = 0

    def __iter__(self) -> Iterator[Sample]:
        """Raises ValueError where ranks x workers exceed the archives, a pass gives nothing, or too much is broken."""
        if self.split == "val":
            yield from self._decoded(self._raw(self._dealt_out(self.urls)), epoch=0)
            return
        epoch = self.epoch
        while True:
            # the same order on all ranks and workers, or two would read the same archive
            order = Random(f"{self.config.seed} {epoch}").sample(self.urls, len(self.urls))
            mine = self._dealt_out(order)
            rng = Random(f"{self.config.seed} {epoch} {mine[0]}")
            raw = wds.shuffle(self.config.shuffle, rng=rng)(self._raw(mine))
            yield from self._decoded(raw, epoch)
            epoch += 1

    def captions(self, count: int) -> Iterator[str]:
        """The captions of the first ``count`` samples."""
        return (sample.caption for sample in islice(self, count))

    def _dealt_out(self, urls: list[str]) -> list[str]:
        """The archives of this rank and worker."""
        if self.split == "val":
            return list(wds.split_by_worker(urls))
        _, ranks, _, workers = pytorch_worker_info()
        check_enough(len(urls), ranks, workers)
        return list(wds.split_by_worker(wds.split_by_node(urls)))

    def _raw(self, urls: list[str]) -> Iterator[dict[str, Any]]:
        """The undecoded samples of ``urls``, archive by archive, so that a torn one cannot run into the next."""
        for url in urls:
            faults: list[Exception] = []

            def note(error: Exception, faults: list[Exception] = faults) -> bool:
                faults.append(error)
                return True

            yield from wds.tarfile_samples(iter([{"url": url}]), handler=note, select_files=is_read)
            self.archives.read += not faults
            if faults:
                # webdataset appends objects of its own to an error's arguments
                words = [word for word in faults[0].args if isinstance(word, str)]
                self.archives.count_broken(url, words[0] if words else str(faults[0]))

    def _decoded(self, raw: Iterable[dict[str, Any]], epoch: int) -> Iterator[Sample]:
        found, given = 0, 0
        for members in raw:
            found += 1
            name = f"{members['__url__']}/{members['__key__']}"
            refuse_outside(members["__key__"], members["__url__"])
            try:
                sample = self._decode(members, name, epoch)
            except BrokenSample as error:
                self.tally.count_broken(name, error)
                continue
            if sample is not None:
                self.tally.read += 1
                given += 1
                yield sample
        # a validation worker may have been dealt no archive; a training pass without a sample would go on for ever
        if not given and (found or self.split == "train"):
            raise ValueError(
                f"none of the {found} samples in {self.urls[0]} ... can be used: {self.tally.broken} are broken, "
                f"{self.captionless} have no caption"
            )

    def _decode(self, members: dict[str, Any], name: str, epoch: int) -> Sample | None:
        """The sample, or None for a picture without a caption or a caption without a picture."""
        image = next((data for ending, data in members.items() if f".{ending}" in IMAGE_SUFFIXES), None)
        kind = next((kind for kind in ("txt", "json") if members.get(kind)), None)
        if image is None or kind is None:
            if not self.captionless:
                log.warning("%s: no picture or no caption; such samples are left out and counted", name)
            self.captionless += 1
            return None
        captions = parse_captions(members[kind], kind)
        rng = np.random.default_rng([self.config.seed, epoch, name_hash(name)])
        return Sample(self.transform(read_image(image), rng), captions[rng.integers(len(captions))])


def expand(urls: str) -> list[str]:
    """The URLs that a pattern with braces stands for; none for an empty one."""
    return list(braceexpand(urls)) if urls else []


def hold_out(urls: list[T], val_urls: list[T]) -> tuple[list[T], list[T]]:
    """The archives to train on, and those of validation: the first of several where none are named."""
    return (urls[1:], urls[:1]) if not val_urls and len(urls) > 1 else (urls, val_urls)


def check_enough(archives: int, ranks: int, workers: int) -> None:
    """Raise ValueError where ``archives`` to train on are fewer than loader workers of all ranks."""
    if archives < ranks * workers:
        raise ValueError(
            f"{archives} training archives are too few for {ranks} ranks x {workers} workers; "
            f"write at least {ranks * workers}, or use fewer workers"
        )


def is_read(name: str) -> bool:
    """Whether the member ``name`` of an archive is read at all; pickles and weights are not."""
    return PurePosixPath(name).suffix.lower() in (*IMAGE_SUFFIXES, ".txt", ".json")
