"""HTTP over a Unix socket of this host."""

from __future__ import annotations

import socket
import urllib.request
from http.client import HTTPConnection, HTTPResponse

PATIENCE_SECONDS = 5.0


class SocketConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, host: str, path: str, timeout: float) -> None:
        """Keep the path of the socket."""
        super().__init__(host, timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket and ignore the URL's host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class SocketHandler(urllib.request.HTTPHandler):
    """Opens http: URLs on one Unix socket."""

    def __init__(self, path: str) -> None:
        """Keep the path of the socket."""
        super().__init__()
        self.path = path

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Send the request over the socket."""

        def connection(host: str, *, timeout: float = PATIENCE_SECONDS, **_: object) -> HTTPConnection:
            return SocketConnection(host, self.path, timeout)

        return self.do_open(connection, request)
