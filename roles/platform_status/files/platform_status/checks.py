"""Check parts of the platform that have no health endpoint of their own.

Each check returns one line of text, which everyone may read and which contains nothing confidential. Results are
cached, however many clients ask. Details of a failure go to the journal.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .prefect import Ill, prefect

SSL_REQUEST, PROTOCOL = 80877103, 196608
"""Codes in PostgreSQL's first messages: the request for TLS, and protocol version 3.0."""
CANNOT_CONNECT_NOW, TOO_MANY_CONNECTIONS, REFUSED = "57P03", "53300", "28"
LATE_SECONDS = 90.0
"""A run that is due for this long, while its pool has nothing else to do, is one that the workers cannot start."""
MESSAGE_BYTES = 8192
VERDICT_SECONDS = 3 * 3600.0
CERTIFICATE_DAYS = 21
"""A host renews its certificate long before; if it has not, somebody has to look."""

Check = Callable[[], Awaitable[str]]
Answer = tuple[int, str]


class Soon(Exception):
    """A part is healthy and will not stay so; the message is public."""


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
        if kind not in (b"R", b"E") or not 4 < length < MESSAGE_BYTES:
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


async def not_after(certificate: Path) -> float:
    """Return when a certificate ends, in seconds since 1970. Python's standard library reads only a CA's."""
    command = ["/usr/bin/openssl", "x509", "-noout", "-enddate", "-in", str(certificate)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    if process.returncode:
        raise OSError(err.decode(errors="replace").strip())
    return ssl.cert_time_to_seconds(out.decode().strip().removeprefix("notAfter="))


async def upkeep(certificate: Path, reboot: Path) -> str:
    """Look for how long the gateway's certificate is valid, and whether an update waits for a reboot."""
    days = (await not_after(certificate) - time.time()) / 86400
    waits = reboot.exists()
    if days <= 0:
        raise Ill("The certificate has ended")
    soon = [f"The certificate ends in {days:.0f} days"] if days < CERTIFICATE_DAYS else []
    if soon or waits:
        raise Soon("; ".join(soon + ["An update waits for a reboot of this host"] * waits))
    return f"The certificate is valid for {days:.0f} days; no reboot is due"


class Part:
    """A part of the platform, checked on request if the last result is too old."""

    def __init__(self, name: str, check: Check, timeout: float, cache: float, *, told: bool = True) -> None:
        """Keep the check and its limits; `told`: whether the journal may have what a good check returns."""
        self.journal = told
        self.name, self.check, self.timeout, self.cache = name, check, timeout, cache
        self.soon = False
        self.look: asyncio.Task[Answer] | None = None
        self.old_at, self.told = 0.0, ""

    async def answer(self) -> Answer:
        """Return status and line; concurrent requests share one check."""
        if self.look is None or (self.look.done() and time.monotonic() >= self.old_at):
            self.look = asyncio.create_task(self.examine())
        return await asyncio.shield(self.look)

    async def examine(self) -> Answer:
        """Check the part within the time limit; never raise."""
        status, reason, soon = 503, "", False
        try:
            async with asyncio.timeout(self.timeout):
                status, line = 200, await self.check()
        except Soon as error:
            status, line, soon = 200, str(error), True
        except Ill as error:
            line = str(error)
        except ssl.SSLCertVerificationError as error:
            line, reason = "Its certificate is not valid", str(error)
        except Exception as error:  # a broken part may answer anything, and must not stop the checks of others
            line, reason = "Does not answer", repr(error)
        if (self.journal or status != 200) and line != self.told:
            print(f"{self.name}: {line}", reason, flush=True)
        self.told, self.soon, self.old_at = line, soon, time.monotonic() + self.cache
        return status, line
