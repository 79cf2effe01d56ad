"""Open files in folders that another user can write to: only regular files of a bounded size.

Such a user could put a link to some other file there, a pipe that blocks the reader, or an endless file. Uses only the
standard library.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: without it, opening a pipe blocks before we can see that it is one. It has no effect on files.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class NotPlainError(OSError):
    """Not a regular file, owned by a user other than the folder's, or too large."""


@contextlib.contextmanager
def folder(root: Path, *names: str) -> Iterator[int]:
    """Open a folder below `root` without following links; the folder that contains `root` must be trusted."""
    descriptor = os.open(root, _FOLDER)
    try:
        for name in names:
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def open_in(descriptor: int, name: str, most: int) -> BinaryIO:
    """Open a regular file of at most `most` bytes in an open folder. Raises OSError.

    The folder's owner or this user must own the file: otherwise it may be a hard link to somebody else's file.
    """
    return _opened(os.open(name, _FILE, dir_fd=descriptor), name, most, {os.fstat(descriptor).st_uid, os.geteuid()})


def open_at(path: Path, most: int) -> BinaryIO:
    """Open a regular file of at most `most` bytes in a folder with a trusted path. Raises OSError."""
    return _opened(os.open(path, _FILE), str(path), most)


def read(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises OSError."""
    with open_at(path, most) as stream:
        return content(stream, most)


def content(stream: BinaryIO, most: int) -> bytes:
    """Return the content of an open file, which may grow meanwhile, but not beyond `most` bytes."""
    found = stream.read(most + 1)
    if len(found) > most:
        raise NotPlainError(f"the file is larger than {most} bytes")
    return found


def _opened(opened: int, name: str, most: int, owners: set[int] | None = None) -> BinaryIO:
    found, wrong = os.fstat(opened), ""
    if not stat.S_ISREG(found.st_mode):
        wrong = "is not a regular file"
    elif owners is not None and found.st_uid not in owners:
        wrong = "does not belong to the owner of its folder"
    elif found.st_size > most:
        wrong = f"is larger than {most} bytes"
    if wrong:
        os.close(opened)
        raise NotPlainError(f"{name} {wrong}")
    return os.fdopen(opened, "rb")
