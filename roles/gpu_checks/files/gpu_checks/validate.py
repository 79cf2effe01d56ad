"""All checks of a host, one after the other."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .containers import check_container
from .driver import check_devices, check_driver, check_module, check_next_kernel, check_persistence
from .hardware import check_clocks, check_computation, check_memory, check_pcie
from .host import Host
from .kernel_log import check_xids
from .programs import check_inference, check_workers
from .readings import Seen
from .verdict import MARK, judged

CHECKS: dict[str, Callable[[Seen], str]] = {
    "GPU devices": check_devices,
    "GPU driver": check_driver,
    "GPU kernel module": check_module,
    "GPU next kernel": check_next_kernel,
    "GPU errors (XID)": check_xids,
    "GPU memory": check_memory,
    "GPU persistence": check_persistence,
    "GPU computation": check_computation,
    "GPU PCIe link": check_pcie,
    "GPU clocks": check_clocks,
    "GPU in containers": check_container,
    "GPU in workers": check_workers,
    "GPU in inference": check_inference,
}


def without_device(host: Host, required: bool) -> dict[str, Any] | None:
    """Return the verdict on a host that has no device; None if it has one."""
    if not host.container() and host.devices():
        return None
    why = "it is a container" if host.container() else "none is on the PCI bus"
    if required:
        text = f"no device: {why}. Check slot, power and passthrough, or set nvidia_require_device to false."
        return {"name": "GPU devices", "ok": False, "skipped": False, "seconds": 0.0, "detail": text}
    text = f"skipped: no device ({why}), and nvidia_require_device is false"
    return {"name": "GPU", "ok": True, "skipped": True, "seconds": 0.0, "detail": text}


def verdicts(host: Host, want: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the verdict of each check, or one only for a host without a device."""
    if found := without_device(host, want["require_device"]):
        yield found
        return
    seen = Seen(host, want)
    for name, check in CHECKS.items():
        yield judged(name, functools.partial(check, seen))


def main(checks: list[dict[str, Any]]) -> None:
    """Run all checks, and print a line for each, also for those that there was no time for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # raises, so that a container is removed
    done: list[dict[str, Any]] = []
    try:
        done.extend(verdicts(Host(), checks[0]["arguments"]))
    except SystemExit:
        names = [*CHECKS][len(done) :]
        late = {"ok": False, "skipped": False, "seconds": 0.0, "detail": "not done: out of time. Raise smoke_timeout."}
        done.extend({"name": name} | late for name in names)
    print("\n".join(MARK + json.dumps(each) for each in done), flush=True)
