"""The latent cache of a run: whether it pays, how it is written, and what it would take."""

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ldm.autoencoders import Autoencoder
from ldm.data.latents import DESCRIPTION, LatentDataset, check_cache, write_cache
from ldm.data.loader import first_told
from ldm.files import settled, whole_folder
from ldm.folders import fingerprint, latent_fingerprint
from ldm.run import Run
from ldm.text.clip import ClipText
from ldm.training.preflight import check_disk, in_bytes, in_time


def cache_pays(run: Run, data: Any, num_processes: int) -> bool:
    """Whether to train from a cache: if asked to, if there is one, or if images are fixed and all of them met.

    Not where the denoiser is told CLIP's embedding of the picture, which a cache has not. Each of ``num_processes``
    that train together takes batches of its own.
    """
    if run.unclip.decoder:
        return False
    if run.cache.use != "auto":
        return run.cache.use == "always"
    if _has_cache(run):
        return True
    if isinstance(data, IterableDataset) or not data.fixed:
        return False
    config = run.train_ldm
    return config.steps * config.batch * config.accumulate * num_processes >= len(data)


def cache_latents(run: Run, autoencoder: Autoencoder, text: ClipText, data: Any) -> LatentDataset:
    """The run's latent cache, written now or, where it matches, read again.

    Raises:
        StaleCache: the cache that is there was made by something else.
        ValueError: the data cannot be cached.
    """
    if run.unclip.decoder:
        raise ValueError("no cache holds the embeddings that unclip.decoder=true tells; it is trained without one")
    if isinstance(data, IterableDataset):
        raise ValueError("a stream has no end and cannot be cached; set cache.use=never, or use data.name=shards")
    folder = Path(run.out) / "cache"
    made_from = {
        "autoencoder": latent_fingerprint(autoencoder),
        "text encoder": fingerprint(text),
        "data set": data.fingerprint(),
    }
    if _has_cache(run):
        check_cache(folder, made_from)
        print(f"latents: the cache in {folder} matches and is used again")
    else:
        with whole_folder(folder) as staged:
            _encode_into(staged, run, autoencoder, text, data, made_from, len(data))
    return LatentDataset(folder)


def cache_a_few(run: Run, autoencoder: Autoencoder, text: ClipText, data: Any, scratch: Path) -> LatentDataset:
    """A cache of the first step's number of samples, in ``scratch``; tells what a whole one takes.

    Where the run has its cache already, that is checked and taken.

    Raises:
        ValueError: a whole one has no room on the run's disk.
    """
    if _has_cache(run) or isinstance(data, IterableDataset):
        return cache_latents(run, autoencoder, text, data)
    folder, count = scratch / "cache", min(run.train_ldm.batch * run.train_ldm.accumulate, len(data))
    folder.mkdir()
    began = time.perf_counter()
    _encode_into(folder, run, autoencoder, text, data, {}, count)
    share = len(data) / count
    size = int(share * sum(path.stat().st_size for path in folder.iterdir()))
    seconds = share * (time.perf_counter() - began)
    print(f"the latent cache would take about {in_bytes(size)} and {in_time(seconds)} (from {count} of {len(data)})")
    check_disk(size, Path(run.out), "the latent cache", "cache.use=never does without")
    return LatentDataset(folder)


def _has_cache(run: Run) -> bool:
    folder = Path(run.out) / "cache"
    return settled(folder) and (folder / DESCRIPTION).exists()


def _encode_into(
    folder: Path, run: Run, autoencoder: Autoencoder, text: ClipText, data: Any, made_from: dict[str, str], count: int
) -> None:
    """Write the cache of the first ``count`` samples of ``data`` into the empty ``folder``."""
    device = next(autoencoder.parameters()).device

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return autoencoder.encode(images.to(device))

    samples = first_told(data, run.cache.at_once(run.data.size), count, run.train_ldm.workers, "latents")
    write_cache(folder, samples, encode, text, made_from, run.cache)
