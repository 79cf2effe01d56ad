"""The load on the lab: keep its program running on a dev host, and write down what it prints."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common import ProblemError
from scripts.lab import hosts as lab_hosts
from scripts.tests.faults.ledger import Ledger

CLIENT = Path(__file__).with_name("client.py")
HOST, PERSON = "dev-1", "ml1"
BUCKET = "training-data"
PREDICTIONS = "https://inference.metalworks.internal/delay"
KINDS = ("runs", "predictions", "data", "flows")
READ_AND_RUN = "import json, sys; exec(json.loads(sys.stdin.readline()))"
PYTHON = "/opt/metalworks/workstation/current/bin/python"
# A connection of its own: faults close the kept ones.
SSH = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ServerAliveInterval=5", "-o", "ConnectTimeout=5"]


def command() -> list[str]:
    """Return the command that runs a program as the developer; its text is the first line of standard input."""
    python = f'{PYTHON} -c "{READ_AND_RUN}"'
    return ["ssh", "-F", str(lab_hosts.SSH_CONFIG), *SSH, HOST, f"sudo su - {PERSON} -c '{python}'"]


def program(call: str) -> str:
    """Return client.py with a call, as a line."""
    return json.dumps(f"{CLIENT.read_text()}\n{call}\n") + "\n"


def as_developer(call: str) -> Any:
    """Return the result of a function of client.py."""
    text = program(f"print(json.dumps({call}))")
    done = subprocess.run(command(), input=text, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise ProblemError(f"{HOST}: {call[:60]}: {(done.stderr or done.stdout)[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Attempt:
    """One piece of work that was tried."""

    kind: str
    began: float
    ended: float
    error: str


class Load:
    """Steady work on the platform, in the background until the end of the `with` block."""

    def __init__(self, ledger: Ledger, deployment: str) -> None:
        """Write acknowledged writes into this ledger; start runs of this deployment."""
        self._ledger, self.deployment = ledger, deployment
        self._attempts: list[Attempt] = []
        self._thread = threading.Thread(target=self._keep)
        self._ending = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.starts = 0
        self.said = ""
        """What the program said last on standard error."""

    def __enter__(self) -> Load:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop: the program ends when its standard input does."""
        self._ending.set()
        if self._process and self._process.stdin:
            self._process.stdin.close()
        self._thread.join()

    def _keep(self) -> None:
        """Run the program; start it again when its host was away."""
        while not self._ending.is_set():
            with subprocess.Popen(
                command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as self._process:
                assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101 - for mypy
                threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True).start()
                self.starts += 1
                try:
                    self._process.stdin.write(program(f"load({self.deployment!r}, {PREDICTIONS!r})"))
                    self._process.stdin.flush()
                    for line in self._process.stdout:
                        self.take(json.loads(line), time.time())
                except OSError:  # its host is away
                    self._process.kill()
            self._ending.wait(1)

    def _listen(self, stream: Any) -> None:
        """Keep what the program says on standard error."""
        for line in stream:
            self.said = line.strip()

    def take(self, line: dict[str, Any], now: float) -> None:
        """Take a line that the program printed; times are this machine's."""
        if "write" in line:
            self._ledger.add(line["write"])
        else:
            self._attempts.append(Attempt(line["attempt"], now - line["seconds"], now, line["error"]))

    def attempts(self, since: float) -> list[Attempt]:
        """Return what was tried and ended since then."""
        return [one for one in list(self._attempts) if one.ended >= since]

    def steady_since(self, since: float, after: float) -> bool:
        """Tell whether work of each kind that began after a moment has succeeded, and none ended in failure since."""
        recent = self.attempts(since)
        good = {one.kind for one in recent if not one.error and one.began > after}
        return good == {*KINDS} and not any(one.error and one.ended > after for one in recent)

    def well(self, since: float) -> bool:
        """Tell whether the latest work of each kind ended since then, and well."""
        latest = {one.kind: one for one in self.attempts(since)}
        return {*latest} == {*KINDS} and not any(one.error for one in latest.values())
