#!/usr/bin/python3
"""Write metrics that no exporter has, for the node exporter to read: verdicts, certificates, reboots, failed logins.

It runs every minute. A metric that cannot be had is left out, so that an alert on its absence can tell.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/metalworks-host-metrics")
METRICS, COUNTS = "metalworks.prom", "counts.json"
SECONDS = 30.0
"""For the answer at a socket, which may read a day's flow runs for it."""
REBOOT = Path("/run/reboot-required")
ENDED = re.compile(
    r"^(?:Connection (?:closed|reset) by|Disconnected from|Disconnecting) (?:invalid|authenticating) user "
)
"""What sshd says once at the end of a connection whose user never logged in."""


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is none, or if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replace(path: Path, text: str) -> None:
    """Replace a file in one step; everyone may read it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(0o644)
    draft.replace(path)


def line(metric: str, value: float, /, **labels: str) -> str:
    """Return a sample as Prometheus reads it."""
    quoted = ",".join(f"{key}={json.dumps(text)}" for key, text in labels.items())
    return f"{metric}{{{quoted}}} {value:.17g}" if quoted else f"{metric} {value:.17g}"


def verdicts(files: dict[str, str]) -> Iterator[str]:
    """Yield how many problems each verdict has, and when its program looked."""
    for name, path in files.items():
        found = read(Path(path))
        if isinstance(found.get("problems"), dict) and isinstance(found.get("at"), int | float):
            yield line("metalworks_verdict_problems", len(found["problems"]), verdict=name)
            yield line("metalworks_verdict_time_seconds", found["at"], verdict=name)


def certificates(files: dict[str, str]) -> Iterator[str]:
    """Yield until when certificates are valid."""
    for name, path in files.items():
        command = ["openssl", "x509", "-noout", "-enddate", "-in", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            until = ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter="))
            yield line("metalworks_certificate_not_after_seconds", until, name=name)


def told_at(path: str) -> str:
    """Return what a program says to GET /metrics at a Unix socket; empty if it does not answer."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(SECONDS)
    try:
        connection.sock.connect(path)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    return text if answer.status == http.HTTPStatus.OK else ""


def failed_logins(messages: list[str]) -> int:
    """Return how many of sshd's messages end a connection without a login."""
    return sum(1 for message in messages if ENDED.match(message))


def counted(counts: dict[str, Any]) -> dict[str, Any]:
    """Return the counts with what the journal has since; the first look only finds its place."""
    cursor = counts.get("cursor", "")
    since = ["--after-cursor", cursor] if cursor else ["--lines=1"]
    command = ["journalctl", "--quiet", "--unit=ssh.service", "--output=cat", "--show-cursor", *since]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    *messages, last = done.stdout.splitlines() or [""]
    found = re.fullmatch(r"-- cursor: (\S+)", last)
    if done.returncode or not found:  # nothing new, or the journal forgot the place
        return counts if not done.returncode else {"failures": counts.get("failures", 0)}
    new = failed_logins(messages) if cursor else 0
    return {"cursor": found[1], "failures": counts.get("failures", 0) + new}


def main() -> int:
    """Look once."""
    wants = json.loads(os.environ["HOST_METRICS"])
    counts = counted(read(STATE / COUNTS))
    replace(STATE / COUNTS, json.dumps(counts))
    lines = [
        *verdicts(wants["verdicts"]),
        *certificates(wants["certificates"]),
        line("metalworks_reboot_required", REBOOT.exists()),
        line("metalworks_login_failures_total", counts.get("failures", 0)),
    ]
    told = told_at(wants["status"]) if wants["status"] else ""
    replace(STATE / METRICS, "".join(f"{one}\n" for one in lines) + told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
