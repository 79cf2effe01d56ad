"""Unix sockets between users that do not trust each other. Imports the standard library alone."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end of a Unix socket."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


async def connect(path: Path) -> socket.socket:
    """Connect to a Unix socket that belongs to its folder's owner; raise OSError if it does not.

    Anyone who may write to the folder could put a link to another user's socket there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, str(path))
        if peer_uid(connection) != path.parent.stat().st_uid:
            raise ConnectionRefusedError(f"{path} does not belong to its folder's owner")
    except BaseException:
        connection.close()
        raise
    return connection
