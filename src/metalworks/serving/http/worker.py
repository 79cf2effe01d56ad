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
from metalworks.serving.predict.variants import Route, UnloadableError
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats, write_stats
from metalworks.serving.telemetry.prediction_log import Log

LOOK_SECONDS, PUBLISH_SECONDS, RETRY_SECONDS = 0.05, 0.5, 2.0
_logger = logging.getLogger("uvicorn.error")


class HttpServer(uvicorn.Server):
    """uvicorn's server, except that it does not raise the signal again, since the process has work to do afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as requests to end, also during the work after serving."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class WorkerProcess:
    """The process's route, counts and server."""

    def __init__(self, settings: Settings, slot: int, shared: int) -> None:
        """Continue the counts of the slot's previous process."""
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
        known.queue, known.in_flight, known.routed, known.unloadable = 0, {}, 0, {}
        return known

    def publish(self) -> None:
        """Write the counts for the supervisor and the other processes; if that fails, go on serving."""
        self.stats.in_flight = self.route.in_flight()
        self.stats.queue = sum(variant.version.queue for variant in self.route.variants)
        try:
            write_stats(self.stats, self.file)
        except OSError as error:  # a full disk, or too many open files: try again next time
            if str(error) != self._last_error:
                _logger.error("Cannot write the counts; trying again: %s", error)
            self._last_error = str(error)
        else:
            self._last_error = ""

    async def follow_route(self) -> None:
        """Follow the route if it has changed."""
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
            # Go on with the old route; the supervisor learns why this process does not follow, and decides.
            self._is_following = False
            if isinstance(error, UnloadableError):
                self.stats.unloadable = {error.version_id: error.reason}
                self.publish()
            if first:
                _logger.exception("Cannot follow the new route yet; the old one stays: %s", error)
            return
        self._is_following = True
        self.stats.routed, self.stats.unloadable = self.route.revision, {}
        self.publish()

    async def watch(self, server: uvicorn.Server) -> None:
        """Follow the route and publish counts until the server ends; end it if the supervisor is gone."""
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
        """Serve until told to end, then answer open requests first."""
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
            # An open request may take its full time.
            timeout_graceful_shutdown=math.ceil(settings.request_timeout) + 5,
            ssl_certfile=settings.certificate or None,
            ssl_keyfile=settings.key or None,
        )
        server = HttpServer(config)
        self.publish()  # before any route, whatever the slot's previous process followed
        # Accept no connection before this process follows a route: other processes and hosts answer meanwhile.
        while not self.stats.routed:
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
    """Run the worker process that the environment and the arguments describe."""
    import uvloop

    memory.give_back_at_once()

    slot, shared = map(int, sys.argv[1:])
    uvloop.run(_main(slot, shared))


async def _main(slot: int, shared: int) -> None:
    await WorkerProcess(Settings.read(os.environ), slot, shared).run()


if __name__ == "__main__":
    main()
