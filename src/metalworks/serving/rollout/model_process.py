"""The supervisor's side of a model's process, which the launcher starts.

A model runs as the launcher's user and could fake its replies. So they are read as text and numbers of bounded length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks.contracts import LaunchRequest
from metalworks.serving.rollout.launcher import LINE_BYTES, STOP_SECONDS
from metalworks.serving.sockets import connect

_logger = logging.getLogger("metalworks.serving")

AGAIN_SECONDS = 0.1
SAY_SECONDS = 5.0
"""After this long without a launcher, an error is logged."""


class LauncherLostError(Exception):
    """The launcher ended, and the process with it."""


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    """As in Python's subprocess: negative for a signal."""
    last_lines: list[str]
    """Its last lines on standard error, if the launcher reads them."""


async def _launcher(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to the launcher; wait until there is one."""
    loop = asyncio.get_running_loop()
    say_at: float | None = loop.time() + SAY_SECONDS
    while True:
        try:
            return await asyncio.open_unix_connection(sock=await connect(path), limit=LINE_BYTES)
        except OSError as error:
            if say_at is not None and loop.time() > say_at:
                _logger.error("The launcher does not answer; still trying: %s", error)
                say_at = None
        await asyncio.sleep(AGAIN_SECONDS)


class ModelProcess:
    """A model's process, running or ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Follow the process until it ends."""
        self._reader, self._writer = reader, writer
        self._end: asyncio.Task[End] = asyncio.create_task(self._follow())
        self._end.add_done_callback(
            lambda end: end.cancelled() or end.exception()
        )  # keeps asyncio from logging an error that nobody waited for

    @classmethod
    async def start(cls, launcher: Path, request: LaunchRequest) -> ModelProcess:
        """Have the launcher start a process; wait for the launcher if necessary.

        Raises OSError if the process cannot be started, and LauncherLostError if the launcher ends meanwhile.
        """
        reader, writer = await _launcher(launcher)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer = await _line(reader)
            if "started" not in answer:
                raise OSError(_text(answer.get("error", "it gave no reason")))
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer)

    async def _follow(self) -> End:
        try:
            answer = await _line(self._reader)
            return End(int(answer["code"]), [_text(each) for each in answer["output"]])
        except (ValueError, KeyError, TypeError) as error:
            raise LauncherLostError(f"the launcher sent a malformed reply: {error!r}") from error
        finally:
            self._writer.close()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._end.done()

    def tell(self, text: str) -> None:
        """Write to its standard input."""
        self._writer.write(text.encode())

    async def wait(self) -> End:
        """Wait for the end and return it; raise LauncherLostError if the launcher ends first."""
        return await asyncio.shield(self._end)

    def hang_up(self) -> None:
        """End the process without waiting."""
        self._writer.close()
        self._end.cancel()

    async def stop(self) -> None:
        """End the process and wait for it."""
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
        with contextlib.suppress(LauncherLostError, TimeoutError):
            # The launcher kills it after STOP_SECONDS.
            await asyncio.wait_for(self.wait(), STOP_SECONDS + 5)
        self.hang_up()


async def keep(launcher: Path, folders: Callable[[], list[str]]) -> None:
    """Have the launcher remove all evidence except the folders that `folders` returns once it is connected."""
    _, writer = await _launcher(launcher)
    writer.write(json.dumps({"do": "keep", "folders": folders()}).encode() + b"\n")
    with contextlib.suppress(OSError):
        await writer.drain()
    writer.close()


async def _line(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return the JSON of the next line; raise LauncherLostError if there is none."""
    try:
        reply = json.loads(await reader.readline())
    except (OSError, ValueError, RecursionError) as error:  # too long, at the end, or not JSON
        raise LauncherLostError("the launcher ended") from error
    if not isinstance(reply, dict):
        raise LauncherLostError("the launcher sent a malformed reply")
    return reply


def _text(value: Any) -> str:
    """Return the value as printable text on one line."""
    return "".join(each if each.isprintable() else " " for each in str(value))
