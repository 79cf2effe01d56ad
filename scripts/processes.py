"""Start a server, measure its processes from /proc, and stop it with all its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 10.0
PARENT, USER_TIME, SYSTEM_TIME, CHILDREN_USER, CHILDREN_SYSTEM, BEGAN = 1, 11, 12, 13, 14, 19
"""Fields of /proc/<pid>/stat, counted from the state, which is the first one after the program's name."""


def stat(pid: int) -> list[str]:
    """Return a process's fields from its state on; an empty list if the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(root: int) -> dict[int, str]:
    """Return a process and all its descendants, each with its start time: a PID alone may be reused."""
    everything = {int(entry.name): stat(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, numbers in everything.items():
        if numbers:
            children.setdefault(int(numbers[PARENT]), []).append(pid)
    found: dict[int, str] = {}
    left = [root]
    while left:
        pid = left.pop()
        if everything.get(pid):
            found[pid] = everything[pid][BEGAN]
            left += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Return the processor time of a process and its descendants, including those that have ended."""
    used = 0
    for pid in tree(root):
        numbers = stat(pid)
        if numbers:
            used += sum(int(numbers[at]) for at in (USER_TIME, SYSTEM_TIME, CHILDREN_USER, CHILDREN_SYSTEM))
    return used / TICKS


def memory_mib(root: int) -> float:
    """Return the memory of a process and its descendants; a shared page counts once."""
    kib = 0
    for pid in tree(root):
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server. At the end, stop it and kill its remaining children: some servers leave their workers."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command,
            env=variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield server
    finally:
        all_of_it = tree(server.pid)
        server.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        while still := left(all_of_it):
            for pid in still:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        server.wait()


def left(processes: Mapping[int, str]) -> list[int]:
    """Return those of the processes that are still running."""
    return [pid for pid, began in processes.items() if (now := stat(pid)) and now[0] != "Z" and now[BEGAN] == began]
