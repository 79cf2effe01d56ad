"""A model that tries what models must not be able to do, for the tests of the cluster and the unit tests."""

from __future__ import annotations

import ctypes
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

PTRACE_SEIZE = 0x4206
"""Attaches without stopping the process, and ends with this one."""


class Spy(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Writes to report.json in its home what it could do, by attempt: `done`, or the error.

    `targets` has paths to `read`, `list` and `write`, the launcher's socket to `ask`, and processes to `signal`; null
    means every process. With targets the model tries when it is loaded. Without, it reads targets.json in its home when
    the first value of a request is -1.
    """

    def __init__(self, targets: dict[str, Any] | None = None) -> None:
        self.targets = targets

    def load_context(self, context: Any) -> None:
        if self.targets is not None:
            try_all(self.targets)

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        if self.targets is None and model_input.iloc[0, 0] == -1.0:
            try_all(json.loads(Path(os.environ["HOME"], "targets.json").read_text()))
        return np.full(len(model_input), 8.0)


def try_all(targets: dict[str, Any]) -> None:
    home, report = Path(os.environ["HOME"]), dict[str, str]()

    def attempt(what: str, how: Callable[[], object]) -> None:
        try:
            how()
        except OSError as error:
            report[what] = str(error)
        else:
            report[what] = "done"

    attempt("own file", lambda: (home / "tried").write_text("yes"))
    for path in map(Path, targets["read"]):
        attempt(f"read {path}", path.read_bytes)
    for path in map(Path, targets["list"]):
        attempt(f"list {path}", lambda path=path: [*path.iterdir()])  # type: ignore[misc]
    for path in map(Path, targets["write"]):
        attempt(f"write {path}", lambda path=path: Path(path, "planted").write_text("x"))  # type: ignore[misc]
        attempt(f"link {path}", lambda path=path: Path(path, "planted.new").symlink_to("/etc/passwd"))  # type: ignore[misc]
    others = 0
    for pid in every_process() if targets["signal"] is None else targets["signal"]:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            others += 1
            report[f"signal {pid}"] = str(error)
            attempt(f"trace {pid}", lambda pid=pid: trace(pid))  # type: ignore[misc]
            continue
        try:
            if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
                report[f"signal {pid}"] = "done"
        except FileNotFoundError:  # it has ended; other users' processes cannot be seen or signalled
            continue
    report["processes of others"] = str(others)
    attempt("ask the launcher", lambda: ask(targets["ask"]))
    (home / "report.json").write_text(json.dumps(report))


def every_process() -> Iterator[int]:
    """Yield all numbers that a process can have: those of other users may be hidden in /proc."""
    yield from range(1, int(Path("/proc/sys/kernel/pid_max").read_text()))


def trace(pid: int) -> None:
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")


def ask(path: str) -> None:
    """Ask the launcher to remove all evidence."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b'{"do": "keep", "folders": ["none"]}\n')
        connection.shutdown(socket.SHUT_WR)
        if not connection.recv(1):
            raise OSError("no answer")
