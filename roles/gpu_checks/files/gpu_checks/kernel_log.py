"""What the driver has written into the kernel's log."""

from __future__ import annotations

import re

from .readings import Seen
from .verdict import Fault

XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+),? ?(.*)")
# Errors that NVIDIA's catalog lays to the program that was running: they end it, and the device is as before.
OF_PROGRAMS = {13, 31, 43, 45}
MENDS = {
    48: "Reset the device or reboot; replace it if this comes again",
    63: "Reset the device or reboot, so that the driver takes a spare row of memory for the bad one",
    64: "Reboot, and have the device replaced: it could not retire a bad part of its memory",
    74: "Check the bridge or the baseboard of NVLink, and reset the devices",
    79: "Switch the machine off and on, check the device's seat, power and temperature, and replace it if this repeats",
    92: "Have the device replaced if it comes again: corrected memory errors are frequent",
    94: "Start the program again, and reset the device when it is free",
    95: "Reset the device or reboot before anything else runs on it",
    119: "Reset the device or reboot, and install a later version of the driver's branch if it comes again",
    120: "Reset the device or reboot, and install a later version of the driver's branch if it comes again",
}


def check_xids(seen: Seen) -> str:
    """The driver has logged no error of a device since boot."""
    code, log = seen.once("log", lambda: seen.host.run("journalctl", "-k", "-b", "-o", "cat", "--no-pager"))
    if code or not log.strip():
        raise Fault(f"the kernel's log cannot be read: {log.strip()[:200]}", "Restart systemd-journald")
    found = XID.findall(log)
    bad = [(address, int(xid), words) for address, xid, words in found if int(xid) not in OF_PROGRAMS]
    if bad:
        numbers = sorted({xid for _, xid, _ in bad})
        address, xid, words = bad[-1]
        raise Fault(
            f"{len(bad)} errors since boot, XID {', '.join(map(str, numbers))}; the last on {address}: {words[:160]}",
            MENDS.get(xid, f"Look up XID {xid} at docs.nvidia.com/deploy/xid-errors; the error is cleared by a reboot"),
        )
    if found:
        numbers = sorted({int(xid) for _, xid, _ in found})
        return f"none of a device; {len(found)} of programs (XID {', '.join(map(str, numbers))})"
    return "none since boot"
