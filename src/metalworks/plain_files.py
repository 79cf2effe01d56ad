"""Files that another user may have put there: taken as plain files of a bounded size, or not at all.

Whoever may write in a folder may put a link there that leads elsewhere, a pipe that nobody writes to, or a file without
an end. The standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: a pipe would be waited for before it could be seen to be one. It means nothing for files.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class NotPlainError(OSError):
    """It is no plain file, not its folder's owner's, or too long."""


@contextlib.contextmanager
def folder(root: Path, *names: str) -> Iterator[int]:
    """Open a folder by its way from `root`, no step of which may be a link; `root` itself stands in a trusted one."""
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
    """Open a plain file of at most `most` bytes in an open folder; it belongs to the folder's owner, or to us.

    Else it may be another name of a file that its owner never put there. Raises OSError.
    """
    return _opened(os.open(name, _FILE, dir_fd=descriptor), name, most, {os.fstat(descriptor).st_uid, os.geteuid()})


def open_at(path: Path, most: int) -> BinaryIO:
    """Open a plain file of at most `most` bytes, in a folder whose way is trusted; raise OSError where it is none."""
    return _opened(os.open(path, _FILE), str(path), most)


def read(path: Path, most: int) -> bytes:
    """Return the content of a plain file of at most `most` bytes; raise OSError where it is none."""
    with open_at(path, most) as stream:
        return content(stream, most)


def content(stream: BinaryIO, most: int) -> bytes:
    """Return all of an open file, which may grow meanwhile, but not beyond `most` bytes."""
    found = stream.read(most + 1)
    if len(found) > most:
        raise NotPlainError(f"it is longer than {most} bytes")
    return found


def _opened(opened: int, name: str, most: int, owners: set[int] | None = None) -> BinaryIO:
    found, wrong = os.fstat(opened), ""
    if not stat.S_ISREG(found.st_mode):
        wrong = "is no plain file"
    elif owners is not None and found.st_uid not in owners:
        wrong = "is another's than its folder"
    elif found.st_size > most:
        wrong = f"is longer than {most} bytes"
    if wrong:
        os.close(opened)
        raise NotPlainError(f"{name} {wrong}")
    return os.fdopen(opened, "rb")
