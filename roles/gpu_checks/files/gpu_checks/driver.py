"""Devices, their driver, and the kind of its kernel module."""

from __future__ import annotations

import re
from typing import Any

from .readings import Gpu, Seen, value
from .verdict import Fault, NotApplicable

PLAYBOOK = "run playbooks/gpu.yml on the host"


def check_devices(seen: Seen) -> str:
    """All devices answer: those of the PCI bus, of the driver, and as many as the site says."""
    pci, gpus, expected = seen.devices, seen.gpus, int(seen.want.get("gpus") or 0)
    if expected and len(pci) != expected:
        raise Fault(
            f"{len(pci)} of {expected} devices are on the PCI bus",
            "Check slot, power and passthrough with `lspci -d 10de:`, or correct nvidia_gpus_expected",
        )
    if len(gpus) != len(pci):
        shown = {gpu.address.lower()[-12:] for gpu in gpus}
        lost = [address for address in pci if address[-12:] not in shown]
        raise Fault(
            f"{len(pci)} devices are on the PCI bus, and the driver shows {len(gpus)}: {', '.join(lost)} is missing",
            "Look for its address in `journalctl -k -b`, then switch the machine off and on",
        )
    for gpu in gpus:
        action = value(gpu.element, "gpu_recovery_action")
        reset = value(gpu.element, "gpu_reset_status/reset_required") == "Yes"
        if reset or action:
            raise Fault(
                f"the driver asks for {action or 'a reset'} of {gpu.name}",
                "Stop what uses it and run `nvidia-smi --gpu-reset -i` with its address, or reboot",
            )
    return f"{len(gpus)}: {', '.join(sorted({gpu.product for gpu in gpus}))}"


def check_driver(seen: Seen) -> str:
    """The driver in the kernel, its library, its packages and the pinned version are the same."""
    packages, running = seen.packages, seen.running
    installed = sorted({version for version, _ in packages.values()})
    if not running:
        nouveau = "nouveau " in seen.host.read("/proc/modules")
        why = ", and nouveau has the devices" if nouveau else ""
        raise Fault(f"no driver of NVIDIA is in the kernel{why}", PLAYBOOK.capitalize())
    text = seen.once("idle", lambda: seen.host.run("nvidia-smi", "-q", "-x")[1])
    if "Driver/library version mismatch" in text:
        raise Fault(
            f"library and module are of two versions: {running} is in the kernel, {', '.join(installed)} is installed",
            "Reboot, so that the kernel loads the module of the installed version",
        )
    if "</nvidia_smi_log>" not in text:
        raise Fault(
            f"nvidia-smi says: {' '.join(text.split())[:300] or 'nothing'}",
            "Run `journalctl -k -b | grep NVRM` on the host, which says why, and reboot",
        )
    if not packages:
        raise Fault(
            f"driver {running} runs, and no package of it is installed",
            f"Remove it with `nvidia-uninstall`, and {PLAYBOOK}",
        )
    if len(installed) > 1:
        named = ", ".join(f"{name} {version}" for name, (version, _) in sorted(packages.items()))
        raise Fault(f"the driver's packages are of several versions: {named}", PLAYBOOK.capitalize())
    if installed != [running]:
        raise Fault(
            f"driver {running} is in the kernel, and {installed[0]} is installed",
            "Reboot, so that the kernel loads the installed version",
        )
    pinned = seen.want.get("driver_versions") or []
    if pinned and running not in pinned:
        raise Fault(f"driver {running} runs, and {' or '.join(pinned)} is pinned", PLAYBOOK.capitalize())
    # Whatever depends on exactly the version of a held package stays with it.
    modules = {name for name in packages if "dkms" in name}
    for part in (modules, {*packages} - modules):
        if part and not any(packages[name][1] for name in part):
            raise Fault(f"an update may replace {', '.join(sorted(part))}: apt holds none", PLAYBOOK.capitalize())
    library = value(seen.idle, "driver_version")
    if library != running:
        raise Fault(f"driver {running} is in the kernel, and nvidia-smi uses {library}", "Reboot the host")
    return f"{running}, installed, held{' and pinned' if pinned else ''}"


def needs(row: dict[str, Any] | None) -> str:
    """Return which module a row of the table of generations needs: open, proprietary, either or none."""
    return str(row["module"]) if row else "open"


def generation_of(gpu: Gpu, table: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a device's row in the table; None if it is newer than the table."""
    for row in table:
        if any(int(first, 16) <= gpu.device <= int(last, 16) for first, last in row["devices"]):
            return row
    return next((row for row in table if row["name"] == gpu.generation), None)


def check_module(seen: Seen) -> str:
    """The kernel module is of the flavour that the devices' generations need."""
    flavour = "open" if "Open Kernel Module" in seen.module else "proprietary"
    names = []
    for gpu in seen.gpus:
        row = generation_of(gpu, seen.want["generations"])
        names.append(row["name"] if row else gpu.generation or "a new generation")
        if needs(row) not in (flavour, "either"):
            raise Fault(
                f"the {flavour} module runs, and {gpu.name} ({names[-1]}) needs the {needs(row)} one",
                f"Set nvidia_driver_kernel_module to auto, and {PLAYBOOK}",
            )
    return f"{flavour}, right for {', '.join(sorted(set(names)))}"


def check_next_kernel(seen: Seen) -> str:
    """The kernel that the next boot takes has the driver's module, too."""
    running = seen.host.run("uname", "-r")[1].strip()
    status, listed = seen.host.run("linux-version", "list")  # of package linux-base, as all of Debian's kernels
    kernels = seen.host.run("linux-version", "sort", "--reverse", *listed.split())[1].split()
    if status or not kernels:
        raise NotApplicable("this host's kernels are not packages of the distribution")
    newest = kernels[0]
    if newest == running:
        return f"{running}, which runs, is the newest"
    built = seen.host.run("dkms", "status")[1]
    line = rf"^nvidia[\w-]*[/,] *([0-9.]+), {re.escape(newest)},.*: installed\s*$"
    versions, installed = set(re.findall(line, built, re.MULTILINE)), {version for version, _ in seen.packages.values()}
    if not versions & installed:
        other = f"only version {', '.join(sorted(versions))} of the module" if versions else "no module"
        raise Fault(
            f"the next boot takes kernel {newest}, for which {other} is built",
            f"Before it reboots, {PLAYBOOK}, which says why a build fails",
        )
    return f"{newest} has the module"


def check_persistence(seen: Seen) -> str:
    """The driver keeps each device initialised."""
    off = [gpu.name for gpu in seen.gpus if value(gpu.element, "persistence_mode") != "Enabled"]
    if off:
        raise Fault(
            f"persistence mode is off for {', '.join(off)}, so that each first use waits",
            "Run `systemctl restart nvidia-persistenced`; `journalctl -u nvidia-persistenced` says why if it stays off",
        )
    return "on"
