"""Answer HTTP on a Unix socket, for a gateway and for the programs of this host that may open it.

`GET /<part>` returns 200 or 503 and one line of text, which everyone may read. `GET /night` (JSON) and `GET /metrics`
name flows: the gateway gives the first only to people who have logged in, and the second to nobody.
"""

from __future__ import annotations

import asyncio
import http
import json
import os
from pathlib import Path
from typing import Any

from .checks import Check, Part, postgresql, upkeep, verdict, work_pool
from .metrics import text
from .night import night

REQUEST_SECONDS = 20.0
REQUEST_BYTES = 8192
NIGHT_SECONDS, NIGHT_CACHE = 15.0, 30.0
"""Prefect reads thousands of runs for one answer; a page that many leave open must not keep it busy."""
REBOOT = Path("/run/reboot-required")
PLAIN, JSON, METRICS = "text/plain; charset=utf-8", "application/json", "text/plain; version=0.0.4; charset=utf-8"

Response = tuple[int, str, str]


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
    if certificate := wishes["certificate"]:
        checks["upkeep"] = lambda: upkeep(Path(certificate), REBOOT)
    return {f"/{name}": Part(name, check, wishes["timeout"], wishes["cache"]) for name, check in checks.items()}


class Service:
    """What is known, by path."""

    def __init__(self, wishes: dict[str, Any]) -> None:
        """Prepare all checks; none runs before somebody asks."""
        self.parts = parts(wishes)

        async def about() -> str:
            return json.dumps(await night(wishes))

        self.night = Part("night", about, wishes.get("night_timeout", NIGHT_SECONDS), NIGHT_CACHE, told=False)

    async def respond(self, path: str) -> Response:
        """Return status, type and content."""
        if path == "/":
            return 200, PLAIN, "OK\n"
        if path == "/night":
            status, content = await self.night.answer()
            return status, JSON if status == http.HTTPStatus.OK else PLAIN, f"{content}\n"
        if path == "/metrics":
            return 200, METRICS, await self.metrics()
        if part := self.parts.get(path):
            status, line = await part.answer()
            if part.soon:
                return status, JSON, json.dumps({"soon": True, "warnings": [line]}) + "\n"
            return status, PLAIN, f"{line}\n"
        return 404, PLAIN, "No such part\n"

    async def metrics(self) -> str:
        """Return the metrics of all parts and of the night."""
        answers = await asyncio.gather(*[part.answer() for part in self.parts.values()])
        healthy = {part.name: answer[0] == 200 for part, answer in zip(self.parts.values(), answers, strict=True)}
        status, content = await self.night.answer()
        return text(healthy, json.loads(content) if status == http.HTTPStatus.OK else None)


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, service: Service) -> None:
    """Answer one request."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            method, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split(" ", 2)
            if method in ("GET", "HEAD"):
                status, kind, content = await service.respond(path)
            else:
                status, kind, content = 405, PLAIN, "Only to be read\n"
            body = content.encode()
            head = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", f"Content-Type: {kind}"]
            head += [f"Content-Length: {len(body)}", "Cache-Control: no-store", "Connection: close"]
            writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + (b"" if method == "HEAD" else body))
            await writer.drain()
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, TimeoutError):
        pass  # a bad request, or a client that left, gets no answer
    finally:
        writer.close()


async def serve(wishes: dict[str, Any]) -> None:
    """Answer until stopped."""
    service = Service(wishes)
    server = await asyncio.start_unix_server(
        lambda reader, writer: respond(reader, writer, service), wishes["socket"], limit=REQUEST_BYTES
    )
    await server.serve_forever()


def main() -> None:
    """Run as told by the environment."""
    asyncio.run(serve(json.loads(os.environ["PLATFORM_STATUS"])))
