"""Questions to Prefect, at its Unix socket."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
from typing import Any

ANSWER_BYTES = 8 * 2**20
PIECE = 65536


class Ill(Exception):
    """A part answers but is not healthy; the message is public."""


class TooLong(Exception):
    """An answer is longer than this program wants to hold in memory."""


class Received:
    """Bytes from a socket, for http.client to read."""

    def __init__(self, content: bytes) -> None:
        """Keep the bytes."""
        self.content = content

    def makefile(self, *_: object) -> io.BytesIO:
        """Return the bytes as a file, like a socket does."""
        return io.BytesIO(self.content)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, and no more than a limit."""
    found = bytearray()
    while piece := await reader.read(PIECE):
        found += piece
        if len(found) > ANSWER_BYTES:
            raise TooLong
    return bytes(found)


async def answer(socket: str, path: str, body: dict[str, Any]) -> Any:
    """Return Prefect's answer to a question."""
    reader, writer = await asyncio.open_unix_connection(socket)
    content = json.dumps(body)
    try:
        head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json"
        writer.write(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())
        response = http.client.HTTPResponse(Received(await everything(reader)))  # type: ignore[arg-type]
    finally:
        writer.close()
    response.begin()
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise Ill("Not in Prefect")
    if response.status != http.HTTPStatus.OK:
        raise Ill("Prefect cannot tell")
    return json.loads(response.read())


async def prefect(socket: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask Prefect for a list."""
    found = await answer(socket, path, body)
    if not isinstance(found, list):
        raise ValueError(f"Prefect answers {path} with no list")
    return found


async def count(socket: str, path: str, body: dict[str, Any]) -> int:
    """Ask Prefect for a number."""
    found = await answer(socket, path, body)
    if not isinstance(found, int):
        raise ValueError(f"Prefect answers {path} with no number")
    return found
