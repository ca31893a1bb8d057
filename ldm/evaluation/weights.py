"""Weights of the metrics' own networks, and the packages of the optional extra ``eval``.

No metric downloads anything: weights are read from a named file, or from torch's hub cache where they lie already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class MissingWeights(ValueError):
    """A metric's network has no weights on this machine; the message says which file, from where, for which option."""


def find_weights(given: Path | None, url: str, option: str) -> Path:
    """The file ``given``, or the one that torch's hub cache keeps of ``url``; nothing is downloaded.

    Raises:
        MissingWeights: it is not there; ``option`` is what the message says to name it with.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise MissingWeights(f"{path} is not there; download {url} and name the file with {option}")
    return path


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
