"""Files that are whole or absent (written aside, flushed to the disk, renamed), and disk trouble in one clear sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

REMEDIES = {
    errno.ENOSPC: "free some space on that disk and go on with --resume",
    errno.EDQUOT: "free some of your disk quota and go on with --resume",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f`) and go on with --resume",
    errno.EROFS: "choose a folder that can be written with --out",
    errno.EACCES: "choose a folder that can be written with --out",
    errno.EPERM: "choose a folder that can be written with --out",
    errno.ENOTDIR: "a file stands where a folder should be; choose another folder with --out",
    errno.EEXIST: "a file stands where a folder should be; choose another folder with --out",
}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Whatever the disk refuses while `path` is written becomes one OSError: what, where, why and what to do.

    The error keeps its `errno`. safetensors reports the system's errors in words of its own; they are the same to us.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise _clear(path, int(found[1])) from error
    except OSError as error:
        raise _clear(path, error.errno or errno.EIO) from error


def _clear(path: Path, code: int) -> OSError:
    remedy = REMEDIES.get(code, "check the disk and go on with --resume")
    error = OSError(f"cannot write {path}: {os.strerror(code).lower()}; {remedy}")
    error.errno = code
    return error


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a crash at any moment leaves the old one or the new one, never a part."""
    aside = leftover(path)
    try:
        with clear_disk_errors(path):
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def leftover(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(f".{path.name}.writing")


def is_leftover(path: Path) -> bool:
    """Whether a killed `write_whole` left this file."""
    return path.name.startswith(".") and path.name.endswith(".writing")


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk: without it a crash may undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
