#!/usr/bin/python3
"""A stand-in service that returns the requests it gets, which shows what the gateway passes on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import socket
import socketserver
import ssl
import struct
import sys
from http.server import BaseHTTPRequestHandler

CHUNK = 1 << 16
LISTEN: dict[str, str | tuple[str, int]] = {
    "mlflow": ("127.0.0.1", 5000),
    "prefect": "/run/stand-in-prefect/api.sock",
    "s3": ("127.0.0.1", 9000),
    "delay1": ("127.0.0.2", 8000),
    "delay2": ("127.0.0.3", 8000),
    "elsewhere": ("127.0.0.4", 8443),
    "database": ("127.0.0.5", 5432),
}
WITH_TLS = ("delay1", "delay2", "elsewhere")
NAME = sys.argv[1]


class Handler(BaseHTTPRequestHandler):
    """Echoes requests, counts uploaded bytes, sends the requested size, and echoes WebSockets."""

    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix" if isinstance(self.client_address, (str, bytes)) else super().address_string()

    def answer(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        size = 0
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline().split(b";")[0], 16):
                size += len(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left and (part := self.rfile.read(min(CHUNK, left))):
                size, left = size + len(part), left - len(part)
        if "/send/" in self.path:
            return self.send(int(self.path.rsplit("/", 1)[1]))
        if self.path.endswith("/filter"):  # Prefect's lists: one worker, of pool gpu, and no runs
            return self.say(200, [{"name": "a worker"}] if self.path.endswith("/gpu/workers/filter") else [])
        if self.path.endswith("/unauthorized"):
            return self.say(401, {"said_by": NAME}, {"WWW-Authenticate": 'Basic realm="mlflow"'})
        told = {"name": NAME, "method": self.command, "path": self.path, "size": size}
        return self.say(200, told | {"headers": [[k.lower(), v] for k, v in self.headers.items()]})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def say(self, status: int, told: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for _ in range(size // CHUNK):
            self.wfile.write(bytes(CHUNK))
        self.wfile.write(bytes(size % CHUNK))

    def websocket(self) -> None:
        """Do the handshake of RFC 6455, then echo every byte."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        while data := self.connection.recv(CHUNK):
            self.connection.sendall(data)
        self.close_connection = True


class Database(socketserver.BaseRequestHandler):
    """PostgreSQL's protocol up to the password request."""

    def handle(self) -> None:
        assert self.request.recv(8) == struct.pack("!ii", 8, 80877103)
        self.request.sendall(b"S")
        with certified().wrap_socket(self.request, server_side=True) as wire:
            assert b"user\0mlflow\0" in wire.recv(CHUNK)
            wire.sendall(b"R" + struct.pack("!ii", 23, 10) + b"SCRAM-SHA-256\0\0")
            assert not wire.recv(CHUNK), "the client closes the connection"


def certified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"/opt/stand-in/tls/{NAME}.crt", f"/opt/stand-in/tls/{NAME}.key")
    return context


class Quiet:
    """A server that ignores disconnecting clients."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        with contextlib.suppress(OSError):
            print("client left:", sys.exc_info()[1])


class Tcp(Quiet, socketserver.ThreadingTCPServer):
    pass


class Unix(Quiet, socketserver.ThreadingUnixStreamServer):
    pass


where = LISTEN[NAME]
server: socketserver.BaseServer
if isinstance(where, str):
    pathlib.Path(where).unlink(missing_ok=True)
    server = Unix(where, Handler)
    pathlib.Path(where).chmod(0o666)
else:
    server = Tcp(where, Database if NAME == "database" else Handler)
    if NAME in WITH_TLS:
        server.socket = certified().wrap_socket(server.socket, server_side=True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0"))
server.serve_forever()
