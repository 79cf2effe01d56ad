"""Run the programs that do the heavy work, and kill them when the follower stops."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from metalworks.errors import FetchError, Stopped

LOOK_SECONDS = 0.2
SECRETS = frozenset({"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"})


class Programs:
    """Runs programs; `turn` lets services install one after the other."""

    def __init__(self, stop: threading.Event, timeout: float = 3600) -> None:
        """Take the event and the timeout that end a program early."""
        self.stop = stop
        self.timeout = timeout
        self.turn = threading.Lock()

    def run(
        self,
        command: list[str],
        *,
        cwd: Path,
        text: str | None = None,
        variables: Mapping[str, str] | None = None,
        secrets: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with additional variables and return its result; it gets passwords only with `secrets`.

        Raises FetchError if it cannot be started or takes too long, and Stopped if the follower stops.
        """
        if self.stop.is_set():
            raise Stopped
        kept = {name: value for name, value in os.environ.items() if secrets or name not in SECRETS}
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=kept | dict(variables or {}),
                stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError) as error:  # the latter for an unreadable folder on PATH
            raise FetchError(f"{command[0]} is not installed on this host") from error
        until = time.monotonic() + self.timeout
        try:
            while True:
                try:
                    out, err = process.communicate(text, timeout=LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    text = None  # passed already; the next call continues
                else:
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                if self.stop.is_set():
                    raise Stopped
                if time.monotonic() > until:
                    raise FetchError(f"{Path(command[0]).name} did not finish within {self.timeout:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with its children; incomplete files are removed later
                process.communicate()
