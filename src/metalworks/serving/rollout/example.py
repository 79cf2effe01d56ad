"""Asks a model's process its recorded example. Imports the standard library alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from metalworks_model_runner import frames

from metalworks.serving.rollout.adopt import FACTS_BYTES
from metalworks.serving.sockets import connect


async def ask(path: Path, body: bytes) -> Any:
    """Return the JSON response of the process behind a socket, where MLflow's functions answer.

    Raises OSError or asyncio.IncompleteReadError if there is no response, ValueError if it is malformed.
    """
    reader, writer = await asyncio.open_unix_connection(sock=await connect(path))
    try:
        writer.write(frames.frame(1, frames.RAW, "application/json", [body]))
        size, _, _ = frames.PREFIX.unpack(await reader.readexactly(frames.PREFIX.size))
        if size > FACTS_BYTES:  # facts.json, which has the earlier response, is limited to this
            raise ValueError(f"an answer of {size} bytes to its example")
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    return json.loads(bytes(frames.body_of(memoryview(answer))[1]))
