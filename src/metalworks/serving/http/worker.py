"""A worker process: `python -m metalworks.serving.http.worker SLOT SOCKET`, started by the supervisor.

It follows route.json and writes its counts to stats-SLOT.json, both in the service's runtime folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import msgspec
import uvicorn
from metalworks_model_runner import memory

from metalworks.contracts import ROUTE, stats_file
from metalworks.serving.http.app import create_app
from metalworks.serving.http.corked import CorkedProtocol
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.variants import Route
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats, write_stats
from metalworks.serving.telemetry.prediction_log import Log

LOOK_SECONDS, PUBLISH_SECONDS, RETRY_SECONDS = 0.05, 0.5, 2.0
_logger = logging.getLogger("uvicorn.error")


class HttpServer(uvicorn.Server):
    """uvicorn's server, except that it does not raise the signal again: the process has work to do after serving."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take a signal as the wish to end, also while what comes after serving is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class WorkerProcess:
    """A process's route, counts and server."""

    def __init__(self, settings: Settings, slot: int, shared: int) -> None:
        """Go on counting where the slot's last process ended."""
        self.settings, self._shared = settings, shared
        self.file = settings.runtime / stats_file(slot)
        self.stats = self._read_stats()
        self.route = Route()
        self.log = Log(settings.state / "spool", settings.log_share, self.stats) if settings.log_share else None
        self.app = create_app(DataPlane(settings, self.route, self.stats, self.log), self.publish)
        self._seen, self._is_following, self._tried_at = 0, True, 0.0
        self._last_error = ""
        self._parent = os.getppid()

    def _read_stats(self) -> Stats:
        try:
            known = msgspec.json.decode(self.file.read_bytes(), type=Stats)
        except FileNotFoundError:
            return Stats()
        known.queue, known.in_flight, known.routed = 0, {}, 0
        return known

    def publish(self) -> None:
        """Write the counts for the supervisor and the other processes; if that fails, go on serving."""
        self.stats.in_flight = self.route.in_flight()
        self.stats.queue = sum(variant.version.queue for variant in self.route.variants)
        try:
            write_stats(self.stats, self.file)
        except OSError as error:  # no room, or no file that may be opened: the next time there may be
            if str(error) != self._last_error:
                _logger.error("Cannot write the counts; trying again: %s", error)
            self._last_error = str(error)
        else:
            self._last_error = ""

    async def follow_route(self) -> None:
        """Follow the route, if it is another than before."""
        path = self.settings.runtime / ROUTE
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._seen and (self._is_following or time.monotonic() - self._tried_at < RETRY_SECONDS):
            return
        first, self._seen, self._tried_at = changed != self._seen, changed, time.monotonic()
        try:
            await self.route.follow(json.loads(path.read_text()), self.settings, self.stats)
        except Exception as error:
            # The supervisor waits for the revision in vain, and says so; what is served goes on.
            self._is_following = False
            if first:
                _logger.exception("Cannot follow the new route yet; the old one stays: %s", error)
            return
        self._is_following = True
        self.stats.routed = self.route.revision
        self.publish()

    async def watch(self, server: uvicorn.Server) -> None:
        """Look and publish until the server ends; end it when the supervisor is gone."""
        published = 0.0
        while not server.should_exit:
            await self.follow_route()
            if time.monotonic() - published > PUBLISH_SECONDS:
                self.publish()
                published = time.monotonic()
            if os.getppid() != self._parent:
                server.should_exit = True
            await asyncio.sleep(LOOK_SECONDS)

    async def run(self) -> None:
        """Serve until told to end; what is under way is answered first."""
        settings = self.settings
        config = uvicorn.Config(
            self.app,
            loop="uvloop",
            http=CorkedProtocol,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            log_level="info",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            # No request that is under way is given up before its own time is over.
            timeout_graceful_shutdown=math.ceil(settings.request_timeout) + 5,
            ssl_certfile=settings.certificate or None,
            ssl_keyfile=settings.key or None,
        )
        server = HttpServer(config)
        self.publish()  # that no route is followed yet, whatever the slot's last process did
        # Nobody is let in before there is something to say: whoever asks meanwhile tries another host, or again.
        while not self._seen:
            await self.follow_route()
            if os.getppid() != self._parent:
                return
            await asyncio.sleep(LOOK_SECONDS)
        watching = asyncio.create_task(self.watch(server))
        await server.serve(sockets=[socket.socket(fileno=self._shared)])
        await watching
        if self.log is not None:
            self.log.close()
        self.publish()


def main() -> None:
    """Serve as the environment says."""
    import uvloop

    memory.give_back_at_once()

    slot, shared = map(int, sys.argv[1:])
    uvloop.run(_main(slot, shared))


async def _main(slot: int, shared: int) -> None:
    await WorkerProcess(Settings.read(os.environ), slot, shared).run()


if __name__ == "__main__":
    main()
