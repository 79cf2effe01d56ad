"""Asks a model's process for its recorded example, with the standard library alone."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from pathlib import Path
from typing import Any

# As the module metalworks_model_runner.frames has them, which wants numpy.
_PREFIX, _LENGTH, _RAW = struct.Struct("<IQB"), struct.Struct("<I"), 1
RELATIVE = 1e-5


async def ask(path: Path, body: bytes) -> Any:
    """Return the answer, as JSON, to a request that MLflow's functions answer in the process behind a socket.

    Raises OSError or asyncio.IncompleteReadError when nobody answers.
    """
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        head = json.dumps("application/json").encode()
        payload = _LENGTH.pack(len(head)) + head + body
        writer.write(_PREFIX.pack(len(payload), 1, _RAW) + payload)
        size, _, _ = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    (length,) = _LENGTH.unpack_from(answer)
    return json.loads(answer[_LENGTH.size + length :])


def same(ours: Any, expected: Any) -> bool:
    """Tell whether two answers are the same, but for the last digits of numbers."""
    if isinstance(expected, list) and isinstance(ours, list):
        return len(ours) == len(expected) and all(map(same, ours, expected))
    if isinstance(expected, dict) and isinstance(ours, dict):
        return ours.keys() == expected.keys() and all(same(ours[key], expected[key]) for key in expected)
    if isinstance(expected, bool) is not isinstance(ours, bool):
        return False
    if isinstance(expected, float) and isinstance(ours, int | float):
        both_nan = math.isnan(ours) and math.isnan(expected)
        return both_nan or math.isclose(ours, expected, rel_tol=RELATIVE, abs_tol=1e-9)
    return bool(ours == expected)
