"""All processes of one flow run, so that they end together and share one memory limit.

On a host with control groups v2, each run has a group of its own below the worker's unit (`Delegate=yes`). The kernel
ends every process of it at once and applies the limit to their sum. Elsewhere (cgroup v1, a container without
delegation) the processes are found by a variable in their environment and by their parents, and have no limit of
their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from metalworks.errors import FlowRunError

CGROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")
WORKER = "worker"
"""Group of the worker itself: a group with processes of its own cannot limit the groups below it."""
MARK = "METALWORKS_FLOW_RUN_PROCESSES"
"""Variable by which processes of a run are found where there is no group: inherited, whoever their parent is."""
LIMIT = "METALWORKS_FLOW_MEMORY_LIMIT"
"""Job variable `memory_limit`."""
DEFAULT_LIMIT = "METALWORKS_FLOW_MEMORY_LIMIT_DEFAULT"
"""The host's default, in the worker's environment."""
END_SECONDS = 5.0
PR_SET_CHILD_SUBREAPER = 36
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def memory_limit(variables: Mapping[str, str], memory: int | None = None) -> int | None:
    """Return the bytes that a run may use, None for no limit of its own; `memory` is that of the host."""
    text = (variables.get(LIMIT) or variables.get(DEFAULT_LIMIT) or "infinity").strip()
    if text.lower() in ("infinity", "none", "max"):
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        total = memory if memory is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(total * float(match[1]) / 100)
    if match := SIZE.fullmatch(text):
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    raise FlowRunError(
        f"memory_limit is {text!r}: write a size such as 8G, a share of the host such as 50%, or infinity."
    )


def own_cgroup() -> Path | None:
    """Return this process' control group v2; None where the host has none, or it is not visible."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            group = CGROUPS / line.removeprefix("0::").lstrip("/")
            return group if (group / "cgroup.procs").is_file() else None
    return None


class RunGroup:
    """The processes of a run that this process keeps."""

    def __init__(self, run: str, keeper: int) -> None:
        """Choose the group's name; create nothing yet."""
        self.mark = f"{run}-{keeper}"
        self.keeper = keeper
        own = own_cgroup()
        self.cgroup = own.parent / f"run-{self.mark}" if own and own.name == WORKER else None

    def create(self, limit: int | None) -> str:
        """Create the group and set its limit. Return why the limit does not apply, or an empty text."""
        # Orphans of the run become children of this process, not of the worker or of init.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if self.cgroup is None:
            return "This worker has no control groups, so the run's memory limit does not apply." if limit else ""
        self.cgroup.mkdir()
        if limit is None:
            return ""
        maximum = self.cgroup / "memory.max"
        if not maximum.exists():
            return "The worker's control group has no memory controller, so the run's memory limit does not apply."
        maximum.write_text(str(limit))
        (self.cgroup / "memory.oom.group").write_text("1")
        return ""

    def enter(self) -> None:
        """Put the calling process, and what it will start, into the group."""
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text("0")

    def out_of_memory(self) -> bool:
        """Tell whether the kernel killed processes of the run because of its memory limit."""
        if self.cgroup is None:
            return False
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in (self.cgroup / "memory.events").read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
        return False

    def members(self) -> list[int]:
        """Return the processes of the run, except its supervisor."""
        if self.cgroup is not None:
            try:
                return [int(line) for line in (self.cgroup / "cgroup.procs").read_text().split()]
            except OSError:  # removed with its last process
                return []
        parents, marked = dict[int, int](), {self.keeper} & {os.getpid()}
        mark = f"{MARK}={self.mark}".encode()
        for folder in PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended, or is another user's
                process = int(folder.name)
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z":
                    continue
                parents[process] = int(parent)
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    marked.add(process)
        found = set(marked)
        while more := {process for process, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {self.keeper, os.getpid()})

    def end(self) -> int:
        """Kill all processes of the run and return how many there were. The group stays."""
        deadline, ended = time.monotonic() + END_SECONDS, set[int]()
        while (members := self.members()) and time.monotonic() < deadline:
            ended |= set(members)
            if self.cgroup is not None and (self.cgroup / "cgroup.kill").exists():
                (self.cgroup / "cgroup.kill").write_text("1")
            else:
                for process in members:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)
        return len(ended)

    def remove(self) -> None:
        """Remove the empty group. One that is not empty stays, which does no harm."""
        if self.cgroup is not None:
            with contextlib.suppress(OSError):
                self.cgroup.rmdir()
