"""The folder of a service's finished segments, and which of them go into one file.

Which segments are a batch is written down before anything of it is sent, and that it is sent before any of them is
removed. So a process that is killed anywhere is followed by one that sends the same file again or removes the rest.

Another user writes here: nothing is opened that is no plain file, and nothing is written over.
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
"""Segments of one file at most, together; a larger one goes alone."""
ABANDONED_SECONDS = 600.0
"""A segment in writing that nobody has touched for so long was left by a process that was killed."""
LARGEST_BYTES = 2**29
"""Of a segment: more is not made of what the server lets lie there."""
_LIST_BYTES = 2**20
_SENDING, _SENT, _SEGMENT = ".batch", ".sent", ".jsonl"


def here(descriptor: int) -> Path:
    """Return a path to an open folder: whatever becomes of its name, it leads there."""
    return Path(f"/proc/self/fd/{descriptor}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Segments that become one file, named after the first."""

    file: Path
    """Where it is written down, one segment a line."""

    @property
    def name(self) -> str:
        """What the file in the object store is named after."""
        return self.file.stem

    @property
    def sent(self) -> bool:
        """Whether only removing is left to do."""
        return self.file.suffix == _SENT

    @property
    def segments(self) -> list[Path]:
        """Return those that are still here, the oldest first."""
        text = plain_files.read(self.file, _LIST_BYTES).decode()
        named = [self.file.with_name(name) for name in text.split() if name.endswith(_SEGMENT) and "/" not in name]
        return [segment for segment in named if _is_plain(segment)]

    def is_sent(self) -> Batch:
        """Write down that the file is in the object store."""
        batch = Batch(self.file.rename(self.file.with_suffix(_SENT)))
        _sync(self.file.parent)  # a power cut must not undo this and leave the segments half removed
        return batch

    def remove(self) -> None:
        """Remove the segments, then what says that they were a batch."""
        for segment in self.segments:
            segment.unlink()
        self.file.unlink()


@dataclass(frozen=True, slots=True)
class Spool:
    """A service's segments that are to be taken away."""

    folder: Path

    def due(self, seconds: float) -> bool:
        """Tell whether there is a batch to go on with, or segments of this age, or enough of them for a file."""
        try:
            with plain_files.folder(self.folder) as descriptor:
                spool = Spool(here(descriptor))
                if any(spool._batches()):
                    return True
                segments = spool._segments()
                full = sum(segment.lstat().st_size for segment in segments) >= BATCH_BYTES
                return bool(segments) and (full or time.time() - _began(segments[0]) >= seconds)
        except FileNotFoundError:  # somebody else takes them away
            return False

    def batches(self) -> Iterator[Batch]:
        """Return what is to be sent or removed: first what an earlier process did not end, then all segments."""
        yield from self._batches()
        self._take_over()
        while segments := self._segments():
            yield self._batch(segments)

    def _batches(self) -> list[Batch]:
        found = (file for suffix in (_SENT, _SENDING) for file in sorted(self.folder.glob(f"*{suffix}")))
        return [Batch(file) for file in found if _is_plain(file)]

    def _segments(self) -> list[Path]:
        """Return the segments of no batch, the oldest first."""
        taken = {segment for batch in self._batches() for segment in batch.segments}
        return sorted({file for file in self.folder.glob(f"*{_SEGMENT}") if _is_plain(file)} - taken, key=_began)

    def _batch(self, segments: list[Path]) -> Batch:
        """Write down that as many of these as fit are a batch."""
        chosen, size = segments[:1], segments[0].lstat().st_size
        for segment in segments[1:]:
            size += segment.lstat().st_size
            if size > BATCH_BYTES:
                break
            chosen.append(segment)
        file = chosen[0].with_suffix(_SENDING)
        new = file.with_suffix(".new")
        with new.open("x") as stream:  # never what stands there, or where a link leads
            stream.writelines(f"{segment.name}\n" for segment in chosen)
            stream.flush()
            os.fsync(stream.fileno())
        return Batch(new.rename(file))

    def _take_over(self) -> None:
        """See to what processes that were killed left half done."""
        for new in self.folder.glob("*.new"):
            new.unlink()
        for part in self.folder.glob("*.part"):
            if time.time() - part.lstat().st_mtime > ABANDONED_SECONDS:
                part.rename(part.with_suffix(_SEGMENT))


def _began(segment: Path) -> float:
    """Return when a segment was begun: its name says so, in nanoseconds."""
    nanoseconds = segment.name.partition("-")[0]
    return int(nanoseconds) / 1e9 if nanoseconds.isdecimal() else segment.lstat().st_mtime


def _is_plain(path: Path) -> bool:
    """Tell whether it is a file that can be one of ours; it is opened with more care."""
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
