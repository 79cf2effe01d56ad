"""Send requests to an inference service on this machine at a constant rate, whatever it answers.

Each connection asks at its own pace: one that has to wait does not make the others wait, and makes up for it.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

JSON = "application/json"


class Request(NamedTuple):
    """What to post, and the status to expect."""

    content_type: str
    body: bytes
    status: int = 200


class Answer(NamedTuple):
    """A response: when it was requested (monotonic clock) and its latency. Status 0 means that none came."""

    at: float
    connection: int
    seconds: float
    status: int
    body: bytes


class Load:
    """Sends each sequence of requests on a connection of its own, over and over, until it is ended."""

    PATIENCE = 120.0
    """Seconds that a response may take."""

    def __init__(self, port: int, requests: Sequence[Sequence[Request]], per_second: float) -> None:
        """Start sending."""
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        """Responses with an unexpected status, and errors."""
        self._port, self._pause, self._per_second = port, len(requests) / per_second, per_second
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(i, each), daemon=True) for i, each in enumerate(requests)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int, requests: Sequence[Request]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self.PATIENCE)
        due, turn = time.monotonic() + number / self._per_second, 0
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            content_type, body, wanted = requests[turn % len(requests)]
            status, response = 0, b""
            began = time.monotonic()
            try:
                connection.request("POST", "/invocations", body, {"content-type": content_type})
                answer = connection.getresponse()
                status, response = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                status, response = 0, repr(error).encode()
                connection.close()  # the next request opens a new one
            if status != wanted:
                self.wrong.append(f"{status} instead of {wanted}: {response[:200]!r}")
            self.answers.append(Answer(began, number, time.monotonic() - began, status, response))
            due, turn = due + self._pause, turn + 1
        connection.close()

    def percentile(self, since: float, until: float, share: float = 0.99) -> float:
        """Return this percentile of the latency, in seconds, of requests sent in between."""
        latencies = sorted(each.seconds for each in [*self.answers] if since <= each.at < until)
        return latencies[int(len(latencies) * share)]

    def end(self) -> None:
        """Stop sending, and wait for the last responses."""
        self._ending.set()
        for thread in self._threads:
            thread.join(self.PATIENCE + 10)
            if thread.is_alive():
                raise TimeoutError("a request was not answered")
