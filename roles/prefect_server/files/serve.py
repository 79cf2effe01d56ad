"""Prefect's server with a watchdog for systemd.

The server is one process with one event loop, so anything that blocks the loop blocks every client. systemd then gets
no keep-alive and restarts the server (WatchdogSec).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prefect.server.api.server import create_app

Message = MutableMapping[str, Any]


async def live() -> None:
    """Send systemd a keep-alive twice per watchdog interval, from the event loop itself."""
    address = os.environ["NOTIFY_SOCKET"]
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
        while True:
            wire.sendto(b"WATCHDOG=1", address)
            await asyncio.sleep(int(os.environ["WATCHDOG_USEC"]) / 2e6)


class Server:
    """The ASGI application. Its lifespan runs in the same event loop as the requests."""

    def __init__(self) -> None:
        """Create Prefect's application."""
        self.app = create_app()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Handle an ASGI scope; send keep-alives during the lifespan."""
        if scope["type"] != "lifespan" or "WATCHDOG_USEC" not in os.environ:
            return await self.app(scope, receive, send)
        living = asyncio.create_task(live())
        try:
            return await self.app(scope, receive, send)
        finally:
            living.cancel()
