"""Processes that work with a device, and may crash or hang where this one must not."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

Tell = Callable[[dict[str, Any]], None]
CRASHED = {"part": "error", "planted": False, "error": "the work crashed or did not end", "code": -1}
PERIOD_SECONDS = 0.2


class Child:
    """A process that works with the driver's library, and what it has told so far."""

    def __init__(self, library: str, work: Callable[[Any, Tell], None]) -> None:
        """Start it."""
        self.told: list[dict[str, Any]] = []
        self.number, writing = os.pipe()
        self.rest, self.over = b"", False
        self.process = os.fork()
        if not self.process:
            self.live(library, work, writing)
        os.close(writing)

    def live(self, library: str, work: Callable[[Any, Tell], None], writing: int) -> None:
        """Work, and end the process."""
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(self.number)
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_CACHE_DISABLE": "1"}  # no files in ~/.nv
            with os.fdopen(writing, "w", buffering=1) as file:

                def tell(said: dict[str, Any]) -> None:
                    file.write(json.dumps(said) + "\n")

                try:
                    loaded = ctypes.CDLL(library)
                except OSError as error:
                    tell({"part": "error", "planted": False, "error": str(error), "code": -1})
                else:
                    work(loaded, tell)
            status = 0
        finally:
            os._exit(status)

    def listen(self) -> None:
        """Take what it has told since."""
        part = os.read(self.number, 65536)
        *lines, self.rest = (self.rest + part).split(b"\n")
        self.told += map(json.loads, lines)
        if not part:
            self.over = True
            if not self.told or self.told[-1]["part"] not in ("end", "error"):
                self.told.append(CRASHED)

    def end(self) -> None:
        """Kill it, if it still runs. One that waits for a device which is gone cannot be killed, and stays."""
        if not self.over:
            self.told.append(CRASHED)
        os.close(self.number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, os.WNOHANG)


def together(
    library: str, works: Sequence[Callable[[Any, Tell], None]], seconds: float, meanwhile: Callable[[], None]
) -> list[list[dict[str, Any]]]:
    """Let processes work side by side for at most so long, and return what each told; do something else meanwhile."""
    children = [Child(library, work) for work in works]
    deadline = time.monotonic() + seconds
    try:
        while (running := {child.number: child for child in children if not child.over}) and (
            time.monotonic() < deadline
        ):
            for number in select.select([*running], [], [], PERIOD_SECONDS)[0]:
                running[number].listen()
            meanwhile()
    finally:
        for child in children:
            child.end()
    return [child.told for child in children]
