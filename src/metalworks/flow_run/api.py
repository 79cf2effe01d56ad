"""The part of Prefect's API that starting and ending a flow run needs.

Does not use Prefect's own client, because importing it takes longer than everything else here.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0
PAGE = 200
"""Prefect returns no more of a list at once."""
AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0)
"""Pauses before a request is repeated after a 503: Prefect's database was busy, and nothing was done."""


class ApiError(Exception):
    """The API does not respond or refuses a request; the message says why."""


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Api:
    """Prefect's API at the URL in its usual variables, or at the server's own Unix socket."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Read the settings; do not connect yet."""
        self.url = urlsplit(variables.get("PREFECT_API_URL", ""))
        self.login = variables.get("PREFECT_API_AUTH_STRING", "")
        self.ca = variables.get("PREFECT_API_SSL_CERT_FILE") or None
        self.socket = variables.get("METALWORKS_PREFECT_SOCKET", "")

    def _connection(self) -> http.client.HTTPConnection:
        if self.socket:
            return _SocketConnection(self.socket)
        if not self.url.hostname:
            raise ApiError("PREFECT_API_URL is not set, or has no host.")
        if self.url.scheme == "http":
            return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=TIMEOUT_SECONDS)
        trust = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection(self.url.hostname, self.url.port, timeout=TIMEOUT_SECONDS, context=trust)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the API's response, or None if it is empty. Raises ApiError."""
        content = None if body is None else json.dumps(body)
        try:
            status, text = self._answer(method, path, content)
            for pause in AGAIN_SECONDS:
                if status != http.client.SERVICE_UNAVAILABLE:
                    break
                time.sleep(pause)
                status, text = self._answer(method, path, content)
            if status >= http.client.BAD_REQUEST:
                words = text.decode(errors="replace")[:500]
                raise ApiError(f"Prefect responded with {status} to {method} {path}: {words}")
            return json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ApiError(f"Prefect does not respond to {method} {path}: {error}") from error

    def flow_runs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Return all flow runs that a filter names."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.ask("POST", "/flow_runs/filter", {"flow_runs": wanted, "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def _answer(self, method: str, path: str, content: str | None) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.login:
            headers["Authorization"] = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        connection = self._connection()
        try:
            connection.request(method, f"{self.url.path.rstrip('/')}{path}", content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
