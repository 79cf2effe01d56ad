"""Prefect's server, which tells systemd that it lives.

It is one process with one event loop: what keeps that busy keeps everybody waiting. systemd, which hears nothing then,
ends it and starts it again (WatchdogSec).
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
    """Tell systemd, twice in the time that it waits, from the event loop itself."""
    address = os.environ["NOTIFY_SOCKET"]
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
        while True:
            wire.sendto(b"WATCHDOG=1", address)
            await asyncio.sleep(int(os.environ["WATCHDOG_USEC"]) / 2e6)


class Server:
    """The application; uvicorn runs its lifespan beside the requests, in the same loop."""

    def __init__(self) -> None:
        """Make Prefect's application."""
        self.app = create_app()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] != "lifespan" or "WATCHDOG_USEC" not in os.environ:
            return await self.app(scope, receive, send)
        living = asyncio.create_task(live())
        try:
            return await self.app(scope, receive, send)
        finally:
            living.cancel()
