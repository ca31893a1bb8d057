"""Folders that are whole or not there, and the tensors in them: staged, hashed, synced, then renamed into place.

Nothing is pickled.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from glob import escape
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
READ = (".safetensors", ".json", ".yaml")  # what this program reads of a folder that it wrote
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
FULL = (ENOSPC, EDQUOT, EFBIG)  # no room left, in three words
PROBE = 1 << 16  # bytes that a folder must take to count as one that can be written to


class BrokenFile(ValueError):
    """A file that is missing, torn or altered; the message names it."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A staging folder to fill; on leaving, it gets a manifest of hashes and is renamed to ``folder``.

    ``folder`` so is complete or not there, and an existing one is replaced only by a complete one: it is moved aside
    first, and where the process is killed between the two renames, ``settled`` puts it back. Where the filling fails,
    the staging folder is removed and ``folder`` stays as it was. Files in it that are not of this program, nor of a
    kind that it reads, are kept.

    Raises:
        ValueError: ``folder`` is not one of this program's (`check_ours`).
        OSError: the disk is full.
    """
    settled(folder)
    check_ours(folder)
    sweep(folder.parent, escape(folder.name))
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        staged.mkdir(parents=True)
        yield staged
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        hashes = {path.relative_to(staged).as_posix(): _hash(path) for path in files}
        (staged / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        for name in (*hashes, MANIFEST):
            (staged / name).chmod(0o666 & ~_umask())  # safetensors writes mode 0600
        _keep_notes(folder, staged)
        for path in [*staged.rglob("*"), staged]:
            _sync(path)
        _replace(folder, staged)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(f"{folder} cannot be written ({error}); free disk space: nothing else was lost") from error
        raise


def check_ours(folder: Path) -> None:
    """A ValueError where ``folder``, which is to be replaced, is a file or holds what this program did not write."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a folder is to be written there; move it, or name another place")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} holds files that this program did not write; move it, or name another place")


def check_outside(folder: Path) -> None:
    """A ValueError where ``folder`` lies in one of this program's, which another file in it would break."""
    if whole := next((parent for parent in folder.resolve().parents if (parent / MANIFEST).is_file()), None):
        raise ValueError(f"--out: {folder} would lie in {whole}, which is complete; name another place")


def _replace(folder: Path, staged: Path) -> None:
    """Rename ``staged`` to ``folder``; one that is there is moved aside first, and removed in the end."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        staged.rename(folder)
    except BaseException:
        if replaced and not folder.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    if replaced:
        shutil.rmtree(old)


def _keep_notes(folder: Path, staged: Path) -> None:
    """Copy to ``staged`` the files in ``folder`` that its manifest does not name and this program does not read.

    Where the manifest is broken or missing nothing is: a file may then be anybody's. A note that cannot be copied is
    warned of: it must not cost what was staged.

    Raises:
        OSError: the disk is full.
    """
    try:
        ours = _hashes(folder)
    except BrokenFile:
        return
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        theirs = name.as_posix() not in ours and path.suffix.lower() not in (*READ, *PICKLES)
        if not (theirs and path.is_file()) or (staged / name).exists():
            continue
        try:
            (staged / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, staged / name)
        except OSError as error:
            if error.errno in FULL:
                raise
            (staged / name).unlink(missing_ok=True)
            print(f"warning: {path} cannot be copied ({error.strerror or error}) and is not kept", file=sys.stderr)


def settled(folder: Path) -> bool:
    """Whether ``folder`` is there; one that a killed process had moved aside to replace it is put back first."""
    left = [] if folder.is_dir() else _leftovers(folder.parent, escape(folder.name), "old")
    if left:
        time.sleep(0.2)  # a living process takes microseconds between its renames
        with suppress(OSError):  # it was a living one: the folder is there now
            left[-1].rename(folder)
    return folder.is_dir()


def sweep(parent: Path, names: str) -> None:
    """Remove what killed processes have left of the folders in ``parent`` whose names fit the pattern ``names``."""
    for path in [*_leftovers(parent, names, "partial"), *_leftovers(parent, names, "old")]:
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(parent: Path, names: str, kind: str) -> list[Path]:
    return sorted(parent.glob(f".{names}.[0-9]*.{kind}"))


def nearest_there(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def make_writable(folder: Path) -> None:
    """Make ``folder`` where it is not there; OSError where it takes no file of ``PROBE`` bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{folder} takes no file ({reason}); free space there, or name another folder") from error


def check_folder(folder: Path) -> None:
    """Compare every file that the manifest of ``folder`` names with its hash there.

    Raises:
        BrokenFile: the folder or a file is missing, its hash is another, it is read by this program and not named, or
            is a pickle.
    """
    if not settled(folder) and not folder.exists():
        raise BrokenFile(f"{folder} is not there; check its name")
    hashes = _hashes(folder)
    for path in folder.rglob("*"):
        name, kind = path.relative_to(folder).as_posix(), path.suffix.lower()
        if kind in PICKLES:
            raise BrokenFile(f"{path} may be a pickle, which can run code; delete it: weights here are safetensors")
        if kind in READ and name not in hashes and name != MANIFEST:
            raise BrokenFile(f"{path} is not in {MANIFEST}: nobody knows whether it was altered; delete it")
    for name, wanted in hashes.items():
        if not (folder / name).is_file():
            raise BrokenFile(f"{folder / name} is missing; copy the whole folder")
        if _hash(folder / name) != wanted:
            raise BrokenFile(f"{folder / name} does not have the hash in {MANIFEST}: it is damaged or was altered")


def _hashes(folder: Path) -> dict[str, str]:
    """The manifest of ``folder``: hashes by the names of files within it; BrokenFile where it is anything else."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not (isinstance(hashes, dict) and hashes and all(isinstance(wanted, str) for wanted in hashes.values())):
            raise ValueError("it names no files and their hashes")
        for name in hashes:
            if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in Path(name).parts:
                raise ValueError(f"'{name}' is not in the folder")
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokenFile(f"{folder / MANIFEST} is missing or unreadable ({reason}); copy the whole folder") from error
    return hashes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or a BrokenFile that names it."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrokenFile(f"{path} is not a readable safetensors file ({error}); fetch it again") from error


def save_tensors(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file, floating-point tensors in ``dtype`` where one is given."""
    kept = {
        key: (value.to(dtype) if dtype and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in tensors.items()
    }
    try:
        save_file(kept, path)
    except SafetensorError as error:  # it says so of a full disk too
        raise OSError(f"{path} cannot be written ({error}); free disk space: nothing else was lost") from error


def load_weights(network: torch.nn.Module, source: Path) -> None:
    """Load a safetensors file strictly; half precision becomes what the network has.

    Raises:
        BrokenFile: the file is torn, or keys or shapes differ; the message names the first and both shapes.
    """
    fill_weights(network, read_tensors(source), source)


def fill_weights(network: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """``load_weights`` of ``tensors`` that were read from ``source``."""
    wanted = network.state_dict()
    for kind, keys in (("lacks", wanted.keys() - tensors.keys()), ("has the unknown", tensors.keys() - wanted.keys())):
        if keys:
            first = ", ".join(sorted(keys)[:3])
            raise BrokenFile(
                f"{source} {kind} {len(keys)} weights ({first}, ...): it was made by another configuration"
            )
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            shapes = f"{tuple(value.shape)} in the file, {tuple(wanted[key].shape)} in the network"
            raise BrokenFile(f"{source}: '{key}' is {shapes}: it was made by another configuration")
    network.load_state_dict(tensors)


def _hash(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    windows = sys.platform == "win32"  # which opens no folder, and flushes no file that is open for reading alone
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
