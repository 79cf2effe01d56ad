#!/usr/bin/python3
"""Report the health of parts of the platform that have no health endpoint of their own.

It answers HTTP on a Unix socket, for a gateway that is open to everyone: GET /<part> returns 200 or 503 and one line of
text, which contains nothing confidential. Results are cached, however many clients ask. Details of a failure go to the
journal.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import ssl
import struct
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

SSL_REQUEST, PROTOCOL = 80877103, 196608
"""Codes in PostgreSQL's first messages: the request for TLS, and protocol version 3.0."""
CANNOT_CONNECT_NOW, TOO_MANY_CONNECTIONS, REFUSED = "57P03", "53300", "28"
REQUEST_SECONDS = 10.0
LATE_SECONDS = 90.0
"""A run that is due for this long, while its pool has nothing else to do, is one that the workers cannot start."""
REQUEST_BYTES = 8192
VERDICT_SECONDS = 3 * 3600.0

Check = Callable[[], Awaitable[str]]
Answer = tuple[int, str]


class Ill(Exception):
    """A part answers but is not healthy; the message is public."""


async def postgresql(host: str, port: int, database: str, user: str, ca: str) -> str:
    """Connect like a client, with TLS and a verified server name, up to the password prompt."""
    context = ssl.create_default_context(cafile=ca)
    # Python 3.13 is stricter about certificates than PostgreSQL's own clients.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(struct.pack("!ii", 8, SSL_REQUEST))
        if await reader.readexactly(1) != b"S":
            raise Ill("Does not answer as PostgreSQL with TLS does")
        await writer.start_tls(context, server_hostname=host)
        wishes = f"user\0{user}\0database\0{database}\0\0".encode()
        writer.write(struct.pack("!ii", 8 + len(wishes), PROTOCOL) + wishes)
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        if kind not in (b"R", b"E") or not 4 < length < REQUEST_BYTES:
            raise Ill("Does not answer as PostgreSQL does")
        # Read the whole message, so that the server logs no broken connection.
        message = await reader.readexactly(length - 4)
    finally:
        writer.close()
    if kind == b"E":
        fields = {field[:1]: field[1:].decode(errors="replace") for field in message.split(b"\0")}
        state = fields.get(b"C", "")
        if state == CANNOT_CONNECT_NOW:
            raise Ill("Starting, stopping or recovering")
        if state == TOO_MANY_CONNECTIONS:
            raise Ill("All connections are taken")
        if not state.startswith(REFUSED):  # a healthy server may not know this user
            raise Ill("Lets nobody in")
    return "Accepts connections"


class Received:
    """Bytes from a socket, for http.client to read."""

    def __init__(self, content: bytes) -> None:
        """Keep the bytes."""
        self.content = content

    def makefile(self, *_: object) -> io.BytesIO:
        """Return the bytes as a file, like a socket does."""
        return io.BytesIO(self.content)


async def prefect(socket: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask Prefect for a list."""
    reader, writer = await asyncio.open_unix_connection(socket)
    content = json.dumps(body)
    try:
        head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json"
        writer.write(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())
        response = http.client.HTTPResponse(Received(await reader.read()))  # type: ignore[arg-type]
    finally:
        writer.close()
    response.begin()
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise Ill("Not in Prefect")
    if response.status != http.HTTPStatus.OK:
        raise Ill("Prefect cannot tell")
    found = json.loads(response.read())
    if not isinstance(found, list):
        raise ValueError(f"Prefect answers {path} with no list")
    return found


async def work_pool(socket: str, pool: str) -> str:
    """Ask Prefect which workers of the pool are online, and whether they start what is due."""
    place, this = f"/api/work_pools/{urllib.parse.quote(pool, safe='')}", {"name": {"any_": [pool]}}
    online = await prefect(socket, f"{place}/workers/filter", {"workers": {"status": {"any_": ["ONLINE"]}}})
    if not online:
        raise Ill("No worker is online")
    before = (datetime.now(UTC) - timedelta(seconds=LATE_SECONDS)).isoformat()
    late = {"state": {"name": {"any_": ["Late"]}}, "expected_start_time": {"before_": before}}
    if runs := await prefect(socket, "/api/flow_runs/filter", {"work_pools": this, "flow_runs": late}):
        busy = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        at_work = await prefect(socket, "/api/flow_runs/filter", {"work_pools": this, "flow_runs": busy, "limit": 1})
        pools = await prefect(socket, "/api/work_pools/filter", {"work_pools": this})
        queues = await prefect(socket, f"{place}/queues/filter", {})
        paused = {queue["name"] for queue in queues if queue["is_paused"]}
        due = [run for run in runs if run["work_queue_name"] not in paused]
        if due and not at_work and not any(one["is_paused"] for one in pools):
            raise Ill(
                "1 run is due, and no worker starts it" if len(due) == 1 else "Runs are due, and no worker starts them"
            )
    return "1 worker is online" if len(online) == 1 else f"{len(online)} workers are online"


async def verdict(file: Path) -> str:
    """Read what a program of this host, which looks every hour, has found."""
    if not file.exists():
        return "Not looked at yet"
    found = json.loads(file.read_text())
    if time.time() - found["at"] > VERDICT_SECONDS:
        raise Ill("Not looked at for hours")
    if problems := sorted(found["problems"].values()):
        raise Ill("; ".join(problems))
    return str(found["line"])


class Part:
    """A part of the platform, checked on request if the last result is too old."""

    def __init__(self, name: str, check: Check, timeout: float, cache: float) -> None:
        """Keep the check and its limits."""
        self.name, self.check, self.timeout, self.cache = name, check, timeout, cache
        self.look: asyncio.Task[Answer] | None = None
        self.old_at, self.told = 0.0, ""

    async def answer(self) -> Answer:
        """Return status and line; concurrent requests share one check."""
        if self.look is None or (self.look.done() and time.monotonic() >= self.old_at):
            self.look = asyncio.create_task(self.examine())
        return await asyncio.shield(self.look)

    async def examine(self) -> Answer:
        """Check the part within the time limit; never raise."""
        status, reason = 503, ""
        try:
            async with asyncio.timeout(self.timeout):
                status, line = 200, await self.check()
        except Ill as error:
            line = str(error)
        except ssl.SSLCertVerificationError as error:
            line, reason = "Its certificate is not valid", str(error)
        except Exception as error:  # a broken part may answer anything, and must not stop the checks of others
            line, reason = "Does not answer", repr(error)
        if line != self.told:
            print(f"{self.name}: {line}", reason, flush=True)
        self.told, self.old_at = line, time.monotonic() + self.cache
        return status, line


def parts(wishes: dict[str, Any]) -> dict[str, Part]:
    """Return the parts by path."""
    checks: dict[str, Check] = {}
    for one in wishes["postgresql"]:
        name, reach = one["name"], {key: value for key, value in one.items() if key != "name"}
        checks[name] = lambda reach=reach: postgresql(**reach, ca=wishes["ca"])  # type: ignore[misc]
    for one in wishes["work_pools"]:
        checks[one["name"]] = lambda pool=one["pool"]: work_pool(wishes["prefect_socket"], pool)  # type: ignore[misc]
    for one in wishes["verdicts"]:
        checks[one["name"]] = lambda file=one["file"]: verdict(Path(file))  # type: ignore[misc]
    return {f"/{name}": Part(name, check, wishes["timeout"], wishes["cache"]) for name, check in checks.items()}


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, known: dict[str, Part]) -> None:
    """Answer one request."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            method, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split(" ", 2)
            if method not in ("GET", "HEAD"):
                status, line = 405, "Only to be read"
            elif path == "/":
                status, line = 200, "OK"
            elif path in known:
                status, line = await known[path].answer()
            else:
                status, line = 404, "No such part"
            body = f"{line}\n"
            head = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "Content-Type: text/plain; charset=utf-8"]
            head += [f"Content-Length: {len(body)}", "Cache-Control: no-store", "Connection: close"]
            writer.write(("\r\n".join(head) + "\r\n\r\n" + ("" if method == "HEAD" else body)).encode())
            await writer.drain()
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, TimeoutError):
        pass  # a bad request, or a client that left, gets no answer
    finally:
        writer.close()


async def serve(wishes: dict[str, Any]) -> None:
    """Answer until stopped."""
    known = parts(wishes)
    server = await asyncio.start_unix_server(
        lambda reader, writer: respond(reader, writer, known), wishes["socket"], limit=REQUEST_BYTES
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(os.environ["PLATFORM_STATUS"])))
