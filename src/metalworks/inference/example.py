"""Asks a model's process for its recorded example, with the standard library alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from metalworks_model_runner import frames


async def ask(path: Path, body: bytes) -> Any:
    """Return the answer, as JSON, to a request that MLflow's functions answer in the process behind a socket.

    Raises OSError or asyncio.IncompleteReadError when nobody answers.
    """
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(frames.frame(1, frames.RAW, "application/json", [body]))
        size, _, _ = frames.PREFIX.unpack(await reader.readexactly(frames.PREFIX.size))
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    return json.loads(bytes(frames.body_of(memoryview(answer))[1]))
