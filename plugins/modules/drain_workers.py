#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Let a host's Prefect workers finish their flow runs and take no new ones."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drain_workers
short_description: Let a host's Prefect workers finish their flow runs and take no new ones
description:
  - Tells the workers to ask for no more runs, and waits until those that they have are over.
  - Does not stop a worker. Whoever stops one whose runs are not over ends these as Crashed, and Prefect reschedules
    those whose flows have retries left.
  - The workers ask for runs again ten minutes after the time that this may wait, if nobody stops them, or after a
    reboot.
options:
  seconds: {type: int, required: true, description: How long to wait for the runs.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let the workers finish
  metalworks.platform.drain_workers:
    seconds: 600
"""

RETURN = r"""
left: {type: int, returned: always, description: Number of runs that are not over.}
workers: {type: list, elements: str, returned: always, description: Units of the workers.}
"""

import time
from pathlib import Path

from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import replace
from ..module_utils.systemctl import show

UNITS = Path("/etc/systemd/system")
DRAINING = Path("/run/metalworks/draining")
"""Read by metalworks.flow_run.drain: seconds since 1970 until which the workers take no runs."""
SPARE_SECONDS = 600
LOOK_SECONDS = 2.0
QUIET_LOOKS = 4
"""A worker that asked just before it was told may start a run some seconds later."""


def children(parents: set[str], processes: Path = Path("/proc")) -> int:
    """Return how many processes these have started that still run: a worker starts one for each run."""
    found = 0
    for place in processes.glob("[0-9]*/stat"):
        try:
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += parent in parents and state != "Z"
    return found


def main() -> None:
    """Read the arguments, and wait."""
    module = HostModule(argument_spec={"seconds": {"type": "int", "required": True}}, supports_check_mode=True)
    seconds = module.params["seconds"]
    workers = sorted(path.name for path in UNITS.glob("prefect-worker-*.service"))
    workers = [unit for unit in workers if show(module, unit, "ActiveState")["ActiveState"] == "active"]
    if not workers or module.check_mode:
        module.exit_json(changed=bool(workers), left=0, workers=workers)
    replace(DRAINING, f"{time.time() + seconds + SPARE_SECONDS:.0f}\n")
    deadline, quiet = time.monotonic() + seconds, 0
    while True:
        left = children({show(module, unit, "MainPID")["MainPID"] for unit in workers} - {"0"})
        quiet = 0 if left else quiet + 1
        if quiet == QUIET_LOOKS or time.monotonic() > deadline:
            module.exit_json(changed=True, left=left, workers=workers)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
