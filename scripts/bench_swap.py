"""How much slower answers are while a new version comes into service; called by `make bench-swap`.

A service on this machine is asked so many times a second, whatever it answers, while a version is proven, loaded and
put in its predecessor's place, several times over. What counts is the 99th percentile of latency from the moment that
the version is wanted until it answers, to that of the seconds before. The verdict is in build/bench-swap.json; the exit
code is 0, or 1 when a median is above what it may be or a request failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from scripts.bench_serving import models
from scripts.bench_serving.measure import START_SECONDS
from scripts.common import BUILD, ProblemError, end
from scripts.soak_inference import JSON, champion, served, want

VERDICT = BUILD / "bench-swap.json"
CONNECTIONS, PER_SECOND = 8, 100
SWAPS, CALM_SECONDS = 3, 15.0
MAY_BE = 2.0
"""The median of the ratios that is good enough."""


class Load:
    """Asks at its own pace: one that has to wait does not make the others wait."""

    def __init__(self, port: int, body: bytes) -> None:
        """Begin at once."""
        self.answers: list[tuple[float, float]] = []
        """When each was asked, and the seconds until its answer."""
        self.failed: list[str] = []
        self._port, self._body = port, body
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        due = time.monotonic() + number / PER_SECOND
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            try:
                connection.request("POST", "/invocations", self._body, {"content-type": JSON})
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{answer.status}: {said[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
            self.answers.append((began, time.monotonic() - began))
            due += CONNECTIONS / PER_SECOND
        connection.close()

    def percentile(self, since: float, until: float, share: float = 0.99) -> float:
        """Return the latency in seconds that this share of the answers in between stayed below."""
        latencies = sorted(seconds for at, seconds in [*self.answers] if since <= at < until)
        return latencies[int(len(latencies) * share)]

    def end(self) -> None:
        """Let every thread have its answer."""
        self._ending.set()
        for thread in self._threads:
            thread.join(70)


def serving(service: subprocess.Popen[bytes], folder: Path, version: str) -> float:
    """Wait for a version to be in service; return the moment."""
    deadline = time.monotonic() + START_SECONDS
    while champion(folder) != version:
        if service.poll() is not None or time.monotonic() > deadline:
            said = (folder / "log").read_text()[-2000:]
            raise ProblemError(f"version {version} does not come into service:\n{said}")
        time.sleep(0.05)
    return time.monotonic()


def measure(name: str) -> dict[str, Any]:
    """Return the figures of one model: milliseconds, ratios, requests that failed."""
    model = models.load(name)
    split = {"columns": model.columns, "data": [model.row]}
    swaps: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="swap-") as at:
        folder = Path(at)
        with served(folder, model.folder, workers=1) as (service, port):
            serving(service, folder, "1")
            load = Load(port, json.dumps({"dataframe_split": split}).encode())
            for number in range(2, 2 + SWAPS):
                began = time.monotonic()
                time.sleep(CALM_SECONDS)  # what it is compared with
                wanted = time.monotonic()
                want(folder, number, [model.folder] * number)
                there = serving(service, folder, str(number))
                before, during = load.percentile(began, wanted), load.percentile(wanted, there)
                swaps.append({"seconds": there - wanted, "before_ms": before * 1000, "during_ms": during * 1000})
                print(
                    f"{name:<8} in service after {there - wanted:4.1f} s; p99 {before * 1000:6.2f} ms before, "
                    f"{during * 1000:6.2f} ms during: {during / before:.2f} times"
                )
            load.end()
    ratio = statistics.median(each["during_ms"] / each["before_ms"] for each in swaps)
    return {"ratio": round(ratio, 2), "swaps": swaps, "requests": len(load.answers), "failed": load.failed}


def main() -> int:
    """Measure, tell, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(models.KINDS), choices=list(models.KINDS), metavar="MODEL")
    arguments = parser.parse_args()
    found = {name: measure(name) for name in arguments.only}
    ok = all(each["ratio"] <= MAY_BE and not each["failed"] for each in found.values())
    BUILD.mkdir(exist_ok=True)
    VERDICT.write_text(json.dumps({"ok": ok, "may_be": MAY_BE, "per_second": PER_SECOND, "models": found}, indent=1))
    for name, each in found.items():
        print(f"{name:<8} {each['ratio']:.2f} times; of {each['requests']} requests, {len(each['failed'])} failed")
    print(f"bench-swap: {'ok' if ok else 'FAILED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)
