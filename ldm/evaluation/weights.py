"""Weights of the metrics' own networks, and the packages of the optional extra ``eval``.

Weights are read from a named file, or from torch's hub cache where they lie already. Nothing is downloaded but where
``download`` is named in a file's place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch

DOWNLOAD = "download"  # in place of a file's name


class MissingWeights(ValueError):
    """A metric's network has no weights on this machine; the message says which file, from where, for which option."""


def find_weights(given: Path | None, url: str, option: str) -> Path:
    """The file ``given``, or the one that torch's hub cache keeps of ``url``, fetched if ``given`` is "download".

    Raises:
        MissingWeights: it is not there; ``option`` is what the message says to name it with.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if given == Path(DOWNLOAD):
        if not cached.is_file():
            fetch(url, cached, option)
        return cached
    path = given or cached
    if not path.is_file():
        raise MissingWeights(
            f"{path} is not there; download {url} and name the file with {option}, or give {DOWNLOAD} as its name"
        )
    return path


def fetch(url: str, path: Path, option: str) -> None:
    """Download ``url`` to ``path``, whole or not at all; where its name ends in a hash, its SHA-256 begins with that.

    Raises:
        MissingWeights: it cannot be had, or is another file than its name says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = torch.hub.HASH_REGEX.search(path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no such page, or another hash
        said = " ".join(str(error).split())
        raise MissingWeights(f"{url} could not be downloaded ({said}); name a file of it with {option}") from error


@contextmanager
def eval_extra() -> Iterator[None]:
    """A package of the extra ``eval`` that is missing is told in one line."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "torchmetrics").partition(".")[0]
        raise ValueError(f"{package} is not installed; pip install -e '.[eval]'") from error


@contextmanager
def fitting(path: Path, network: str) -> Iterator[None]:
    """A file that does not fit ``network`` is told in one line."""
    try:
        yield
    except Exception as error:  # damaged pickles raise errors of many kinds
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} does not hold the weights of {network} ({type(error).__name__}: {said})") from error
