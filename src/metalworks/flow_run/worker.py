"""Start a Prefect worker so that each of its runs can have a control group of its own.

The command of the workers' units: ``metalworks-worker start …`` checks that a run could start here, prepares the groups
and becomes ``prefect worker start …``, with a worker that can be drained.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from metalworks.errors import FlowRunError
from metalworks.flow_run.group import WORKER, own_cgroup


def prepare() -> str:
    """Move this process into a control group below its unit's, to make room for those of runs; return the outcome."""
    unit = own_cgroup()
    if unit is None:
        return "No control groups v2 on this host: runs have no memory limits of their own."
    try:
        own = unit / WORKER
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text("0")
        if "memory" not in (unit / "cgroup.controllers").read_text().split():
            return "Each run has its own control group, without a memory limit: the kernel's memory controller is off."
        (unit / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        return f"systemd delegates no control group to this worker ({error}): runs have no memory limits of their own."
    return "Each run has its own control group and memory limit."


def check() -> None:
    """Raise FlowRunError if runs cannot start here. A worker that took runs anyway would crash all of them."""
    for folder in (tempfile.gettempdir(), os.environ.get("METALWORKS_FLOW_CACHE", "")):
        if not folder:
            continue
        try:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(b"x" * 65536)
                file.flush()
        except OSError as error:
            raise FlowRunError(f"This worker cannot start runs: {folder} cannot be written to ({error}).") from error
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise FlowRunError(f"This worker cannot start runs: a process cannot be started ({error}).") from error


def main() -> None:
    """Become the Prefect worker, or exit with the reason why runs cannot start."""
    try:
        check()
    except FlowRunError as error:
        raise SystemExit(str(error)) from error
    print(prepare(), flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "metalworks.flow_run.drain", "worker", *sys.argv[1:]])
