"""Programs that do the heavy work, each ended when the follower is to end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from metalworks.errors import FetchError, Stopped

LOOK_SECONDS = 0.2
SECRETS = frozenset({"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"})


class Programs:
    """Runs programs one at a time; those of a service wait for another's."""

    def __init__(self, stop: threading.Event, timeout: float = 3600) -> None:
        """Remember what ends a program early."""
        self.stop = stop
        self.timeout = timeout
        self.turn = threading.Lock()

    def run(
        self, command: list[str], *, cwd: Path, text: str | None = None, secrets: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, without passwords unless it needs them; its output is returned, whatever its code.

        Raises FetchError where it cannot be started or takes too long, and Stopped when the follower is to end.
        """
        if self.stop.is_set():
            raise Stopped
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={name: value for name, value in os.environ.items() if secrets or name not in SECRETS},
                stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError) as error:  # the latter of a folder on PATH that is another's
            raise FetchError(f"{command[0]} is not installed on this host") from error
        until = time.monotonic() + self.timeout
        try:
            while True:
                try:
                    out, err = process.communicate(text, timeout=LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    text = None  # it is on its way; the next call goes on with it
                else:
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                if self.stop.is_set():
                    raise Stopped
                if time.monotonic() > until:
                    raise FetchError(f"{Path(command[0]).name} did not end within {self.timeout:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started; what it left half done is removed later
                process.communicate()
