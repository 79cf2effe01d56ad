"""Memory, link, clocks and computation."""

from __future__ import annotations

from .cuda import FULL, IN_USE, NOT_READY
from .products import LAUNCHES
from .readings import Gpu, Seen, number, reasons, uncorrected, value
from .verdict import Fault, NotApplicable


def check_memory(seen: Seen) -> str:
    """No uncorrected errors since the driver was loaded, and no repair that waits or failed."""
    modes, notes = set(), []
    for gpu in seen.gpus:
        modes.add(value(gpu.element, "ecc_mode/current_ecc") or "none")
        refuse_bad_memory(gpu)
        if count := uncorrected(gpu.element.find("ecc_errors/aggregate")):
            notes.append(f"{gpu.name} has had {count} uncorrected errors in its life")
    words = {"Enabled": "ECC on", "Disabled": "ECC off", "none": "no ECC"}
    return "; ".join([", ".join(sorted(words.get(mode, mode) for mode in modes)) + ", nothing to repair", *notes])


def refuse_bad_memory(gpu: Gpu) -> None:
    """Raise Fault if the device's counters tell of bad memory."""
    element = gpu.element
    for path, name in (
        ("remapped_rows/remapped_row_failure", "could not remap a bad row"),
        ("ecc_errors/aggregate/sram_threshold_exceeded", "has had too many errors in its SRAM"),
    ):
        if value(element, path) == "Yes":
            raise Fault(f"{gpu.name} {name}", "Have the device replaced")
    for path in (
        "remapped_rows/remapped_row_pending",
        "retired_pages/pending_retirement",
        "retired_pages/pending_blacklist",
    ):
        if value(element, path) == "Yes":
            raise Fault(
                f"{gpu.name} has a bad part of its memory that waits to be replaced by a spare one",
                "Reset the device or reboot, so that the driver takes spare memory for the bad one",
            )
    if count := uncorrected(element.find("ecc_errors/volatile")):
        raise Fault(
            f"{gpu.name} has had {count} uncorrected memory errors since the driver was loaded",
            "Reset the device or reboot; have it replaced if they come again",
        )


def check_pcie(seen: Seen) -> str:
    """Each device's link has its full width and generation while it works."""
    lanes, told = int(seen.want.get("pcie_lanes") or 0), set()
    for gpu in seen.busy:
        link = gpu.element.find("pci/pci_gpu_link_info")
        widest, width = number(link, "link_widths/max_link_width"), number(link, "link_widths/current_link_width")
        newest, generation = number(link, "pcie_gen/max_link_gen"), number(link, "pcie_gen/current_link_gen")
        if width is None or generation is None:
            told.add(f"{gpu.name} does not tell")
            continue
        wanted = min(lanes or widest or width, widest or width)
        if width < wanted:
            raise Fault(
                f"{gpu.name} works on {width} of {wanted} PCIe lanes",
                "Seat the card and its riser again; if the slot has no more, set nvidia_pcie_lanes_expected",
            )
        if newest and generation < newest:
            raise Fault(
                f"the link of {gpu.name} works as PCIe {generation}, and could as PCIe {newest}",
                "Set the slot's speed to the maximum in the firmware's setup, and check riser and cable",
            )
        told.add(f"PCIe {generation} x{width}")
    return f"{', '.join(sorted(told))} under load"


SLOWED = {
    "hw_thermal_slowdown": (
        "is slowed because it is too hot",
        "Clean fans and filters, check the airflow and the room's temperature",
    ),
    "hw_power_brake_slowdown": (
        "is slowed because the machine's power supply asks for it",
        "Check the power supplies and the GPU's power cables",
    ),
    "sw_thermal_slowdown": (
        "is slowed so that it does not become too hot",
        "Check the airflow and the room's temperature",
    ),
    "hw_slowdown": (
        "is slowed by its hardware, for heat or for power",
        "Check cooling, power supplies and power cables",
    ),
}


def check_clocks(seen: Seen) -> str:
    """No device is slowed for heat or power while it works."""
    told = []
    for gpu in seen.busy:
        active = reasons(gpu)
        for reason, (wrong, mend) in SLOWED.items():
            if reason in active:
                raise Fault(f"{gpu.name} {wrong}", mend)
        clock, most = number(gpu.element, "clocks/sm_clock"), number(gpu.element, "max_clocks/sm_clock")
        if clock and most:
            capped = ", at its power limit" if "sw_power_cap" in active else ""
            told.append(f"{clock} of {most} MHz{capped}")
    return f"{'; '.join(sorted(set(told))) or 'not slowed'} under load"


def check_computation(seen: Seen) -> str:
    """Each device multiplies matrices right, over and over for seconds."""
    modes = {value(gpu.element, "compute_mode") for gpu in seen.gpus}
    computed, alone = seen.computed, modes & {"Exclusive_Process", "Prohibited"}
    if computed["code"] == IN_USE and alone:
        raise NotApplicable(f"a device is in use, in compute mode {', '.join(alone)}: check again when it is free")
    if computed["code"] == FULL and any([*gpu.element.iter("process_info")] for gpu in seen.gpus):
        raise NotApplicable("programs have taken all memory of a device: check again when it is free")
    if computed["code"] == NOT_READY:
        raise Fault(
            "the devices are connected by NVSwitch, which is not ready",
            "Install nvidia-fabricmanager in exactly the driver's version, and start it",
        )
    if computed["error"]:
        raise Fault(
            f"the driver's library says {computed['error']}",
            "Run `nvidia-smi` and `journalctl -k -b | grep NVRM` on the host, which say more, and reboot",
        )
    for device in computed["devices"]:
        if device["wrong"]:
            kinds = " and ".join(f"{count} elements in {kind}" for kind, count in device["wrong"].items())
            raise Fault(
                f"{device['name']} computed {kinds} wrong, in {device['rounds']} rounds",
                "Take the device out of service, check it with NVIDIA's diagnostics (DCGM), and have it replaced",
            )
        if not device["rounds"]:
            raise Fault(f"{device['name']} has computed nothing", "Check again when the device is free")
    parts, count = any(gpu.mig for gpu in seen.gpus), len(computed["devices"])
    if not parts and count != len(seen.gpus):
        raise Fault(
            f"programs see {count} of {len(seen.gpus)} devices",
            "Run `journalctl -k -b | grep NVRM` on the host, which names the device that fails, and reboot",
        )
    products = LAUNCHES * min((device["rounds"] for device in computed["devices"]), default=0)
    note = "; of a device that is divided by MIG, the first part only" if parts else ""
    return f"matrix products right in integers and floats, {products} on each of {count}{note}"
