"""Send requests to a model in service at a constant rate: load.py URL SECONDS RATE CONNECTIONS <body.

Every connection is kept open and has its own schedule, so that a slow response delays no other. Ends by itself, or when
standard output is closed. Prints a line of JSON per request: send time, status (0: no response), seconds, and the
first prediction.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit


def ask(connection: http.client.HTTPSConnection, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, object]:
    """Return status and first prediction, or 0 and the error if there is no response."""
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        return 0, f"{type(error).__name__}: {error}"
    if answer.status != 200:
        return answer.status, str(said)[:200]
    return 200, said["predictions"][0]


def work(url: str, until: float, period: float, offset: float, body: bytes, lock: threading.Lock) -> None:
    """Send a request on one connection every `period` seconds."""
    parts = urlsplit(url)
    token = (Path.home() / ".config/metalworks/inference_token").read_text().strip()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection = http.client.HTTPSConnection(parts.netloc, timeout=70, context=ssl.create_default_context())
    due = time.time() + offset
    while due < until:
        time.sleep(max(0.0, due - time.time()))
        due += period
        sent = time.time()
        status, said = ask(connection, f"{parts.path}/invocations", body, headers)
        if connection.sock is not None:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with lock:
            print(json.dumps([round(sent, 3), status, round(time.time() - sent, 4), said]), flush=True)


def main() -> None:
    """Start the connections and wait for their end."""
    url, seconds, rate, connections = sys.argv[1], *map(float, sys.argv[2:5])
    body, lock = sys.stdin.buffer.read(), threading.Lock()
    until, count = time.time() + seconds, int(connections)
    threads = [
        threading.Thread(target=work, args=(url, until, count / rate, i / rate, body, lock), daemon=True)
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


main()
