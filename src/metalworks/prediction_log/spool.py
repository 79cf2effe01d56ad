"""The spool: the folder of a service's finished segments, and the batches of segments that become one file each.

A batch is recorded in a file before it is sent, and marked as sent before its segments are removed. So after a kill at
any point, the next process sends the same file again or removes the rest.

Another user can write to this folder: open only regular files, and never overwrite a file.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metalworks import plain_files

BATCH_BYTES = 32 * 2**20
"""Maximum size of the segments in a batch; a larger segment is a batch of its own."""
ABANDONED_SECONDS = 600.0
"""An unfinished segment that has not changed for this long was left by a killed process."""
LARGEST_BYTES = 2**29
"""Maximum size of a segment."""
_LIST_BYTES = 2**20
_SENDING, _SENT, _SEGMENT = ".batch", ".sent", ".jsonl"


def here(descriptor: int) -> Path:
    """Return a path to an open folder that stays valid even if the folder is renamed or replaced."""
    return Path(f"/proc/self/fd/{descriptor}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Segments that become one file, named after the first."""

    file: Path
    """The file that lists its segments, one per line."""

    @property
    def name(self) -> str:
        """Name of the batch, part of the name of its file in the object store."""
        return self.file.stem

    @property
    def sent(self) -> bool:
        """Whether it is sent and only has to be removed."""
        return self.file.suffix == _SENT

    @property
    def segments(self) -> list[Path]:
        """Return the segments that still exist, the oldest first."""
        text = plain_files.read(self.file, _LIST_BYTES).decode()
        named = [self.file.with_name(name) for name in text.split() if name.endswith(_SEGMENT) and "/" not in name]
        return [segment for segment in named if _is_plain(segment)]

    def is_sent(self) -> Batch:
        """Record that the file is in the object store."""
        batch = Batch(self.file.rename(self.file.with_suffix(_SENT)))
        _sync(self.file.parent)  # a power cut must not undo this and leave the segments half removed
        return batch

    def remove(self) -> None:
        """Remove the segments, then the file that lists them."""
        for segment in self.segments:
            segment.unlink()
        self.file.unlink()


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of a service's finished segments."""

    folder: Path

    def due(self, seconds: float) -> bool:
        """Tell whether to send now: a batch is unfinished, or the segments are this old, or enough for a file."""
        try:
            with plain_files.folder(self.folder) as descriptor:
                spool = Spool(here(descriptor))
                if any(spool._batches()):
                    return True
                segments = spool._segments()
                full = sum(segment.lstat().st_size for segment in segments) >= BATCH_BYTES
                return bool(segments) and (full or time.time() - _began(segments[0]) >= seconds)
        except FileNotFoundError:  # another process is removing them
            return False

    def batches(self) -> Iterator[Batch]:
        """Return the batches to send or remove: first those that an earlier process did not finish, then new ones."""
        yield from self._batches()
        self._take_over()
        while segments := self._segments():
            yield self._batch(segments)

    def _batches(self) -> list[Batch]:
        found = (file for suffix in (_SENT, _SENDING) for file in sorted(self.folder.glob(f"*{suffix}")))
        return [Batch(file) for file in found if _is_plain(file)]

    def _segments(self) -> list[Path]:
        """Return the segments that belong to no batch, the oldest first."""
        taken = {segment for batch in self._batches() for segment in batch.segments}
        return sorted({file for file in self.folder.glob(f"*{_SEGMENT}") if _is_plain(file)} - taken, key=_began)

    def _batch(self, segments: list[Path]) -> Batch:
        """Record a batch of as many of these segments as fit."""
        chosen, size = segments[:1], segments[0].lstat().st_size
        for segment in segments[1:]:
            size += segment.lstat().st_size
            if size > BATCH_BYTES:
                break
            chosen.append(segment)
        file = chosen[0].with_suffix(_SENDING)
        new = file.with_suffix(".new")
        with new.open("x") as stream:  # never overwrites a file or follows a link
            stream.writelines(f"{segment.name}\n" for segment in chosen)
            stream.flush()
            os.fsync(stream.fileno())
        return Batch(new.rename(file))

    def _take_over(self) -> None:
        """Clean up after killed processes: remove their incomplete lists, and finish their segments."""
        for new in self.folder.glob("*.new"):
            new.unlink()
        for part in self.folder.glob("*.part"):
            if time.time() - part.lstat().st_mtime > ABANDONED_SECONDS:
                part.rename(part.with_suffix(_SEGMENT))


def _began(segment: Path) -> float:
    """Return when a segment was begun, which is in its name, in nanoseconds."""
    nanoseconds = segment.name.partition("-")[0]
    return int(nanoseconds) / 1e9 if nanoseconds.isdecimal() else segment.lstat().st_mtime


def _is_plain(path: Path) -> bool:
    """Tell whether it is a regular file that can be a segment; opening it checks this again."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_BYTES


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
