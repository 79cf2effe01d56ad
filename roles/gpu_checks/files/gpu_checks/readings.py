"""What the host, its driver and nvidia-smi tell, each read once."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from .host import Host
from .verdict import NotApplicable


def value(element: ElementTree.Element | None, path: str) -> str:
    """Return the text at a path of a reading, empty if the device or the driver does not have it."""
    found = "" if element is None else (element.findtext(path) or "").strip()
    return "" if found in ("N/A", "None", "[N/A]") or found.startswith("Requested functionality") else found


def number(element: ElementTree.Element | None, path: str) -> int | None:
    """Return the number at a path of a reading, such as 16 for `16x`."""
    found = re.match(r"\d+", value(element, path))
    return int(found[0]) if found else None


def parsed(text: str) -> ElementTree.Element:
    """Return the readings of `nvidia-smi -q -x`; raise NotApplicable if there are none."""
    start, last = text.find("<nvidia_smi_log"), "</nvidia_smi_log>"
    if start < 0 or last not in text:
        raise NotApplicable("nvidia-smi gives no readings: see the check of the driver")
    return ElementTree.fromstring(text[start : text.index(last) + len(last)])  # noqa: S314 - of the driver's own program, without its DTD


class Gpu:
    """Readings of one device."""

    def __init__(self, element: ElementTree.Element) -> None:
        """Take its element."""
        self.element = element
        self.address = value(element, "pci/pci_bus_id") or element.get("id", "")
        self.product = value(element, "product_name")
        self.name = f"{self.product} at {self.address.lower()[-12:]}"
        self.mig = value(element, "mig_mode/current_mig") == "Enabled"

    @property
    def generation(self) -> str:
        """The device's generation in the words of nvidia-smi; empty from drivers before 470."""
        return value(self.element, "product_architecture")

    @property
    def device(self) -> int:
        """The device's number in the list of PCI."""
        return int(value(self.element, "pci/pci_device_id").removeprefix("0x")[:4] or "0", 16)


# Packages that have the driver's own version, of NVIDIA, Debian and Ubuntu.
DRIVER = re.compile(
    r"(libcuda1|libnvidia-(compute|cfg1)(-\d+)?(-server)?|nvidia-(driver-cuda|smi|utils-\d+(-server)?)"
    r"|nvidia-((open-)?kernel(-open)?-dkms|dkms(-\d+)?(-server)?(-open)?))$"
)


class Seen:
    """A host's readings, each taken once."""

    def __init__(self, host: Host, want: dict[str, Any]) -> None:
        """Take the host, and what it should be like."""
        self.host, self.want = host, want
        self.known: dict[str, Any] = {}

    def once(self, name: str, read: Callable[[], Any]) -> Any:
        """Return a reading."""
        if name not in self.known:
            self.known[name] = read()
        return self.known[name]

    @property
    def devices(self) -> list[str]:
        """PCI addresses of the devices."""
        found: list[str] = self.once("devices", self.host.devices)
        return found

    @property
    def module(self) -> str:
        """The kernel's line about its module; empty if it is not loaded."""
        text: str = self.once("module", lambda: self.host.read("/proc/driver/nvidia/version"))
        return (text.splitlines() or [""])[0]

    @property
    def running(self) -> str:
        """Version of the module in the kernel."""
        found = re.search(r"\s(\d{3,}(?:\.\d+)+)\s", f"{self.module} ")
        return found[1] if found else ""

    @property
    def idle(self) -> ElementTree.Element:
        """Readings before the load."""
        return parsed(self.once("idle", lambda: self.host.run("nvidia-smi", "-q", "-x")[1]))

    @property
    def gpus(self) -> list[Gpu]:
        """Readings of the devices before the load."""
        return [*map(Gpu, self.idle.findall("gpu"))]

    @property
    def computed(self) -> dict[str, Any]:
        """What the devices computed."""
        found: dict[str, Any] = self.once("loaded", self.host.loaded)[1]
        return found

    @property
    def busy(self) -> list[Gpu]:
        """Readings of the devices under load."""
        if not (text := self.once("loaded", self.host.loaded)[0]):
            why = "there are no readings under load: see the check of the computation"
            raise NotApplicable(why)
        return [*map(Gpu, parsed(text).findall("gpu"))]

    @property
    def packages(self) -> dict[str, tuple[str, bool]]:
        """Version of each package of the driver, and whether it is held."""
        form = "${db:Status-Abbrev}|${Package}|${Version}\n"
        text = self.once("packages", lambda: self.host.run("dpkg-query", "--show", f"--showformat={form}")[1])
        rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
        upstream = re.compile(r"^(?:\d+:)?([0-9.]+)")
        return {name: ((upstream.match(version) or [version] * 2)[1], state[0] == "h")
                for state, name, version in rows if state[1:2] == "i" and DRIVER.match(name)}  # fmt: skip


def uncorrected(counts: ElementTree.Element | None) -> int:
    """Return the uncorrected errors of one kind of counter, in the form of any generation."""
    if counts is None:
        return 0
    older = number(counts, "double_bit/total")
    if older is not None:
        return older
    names = [each.tag for each in counts if "uncorrectable" in each.tag]
    return sum(number(counts, name) or 0 for name in names)


def reasons(gpu: Gpu) -> set[str]:
    """Return why the device does not run at its highest clock; later drivers name the elements otherwise."""
    found = gpu.element.find("clocks_event_reasons")
    found = gpu.element.find("clocks_throttle_reasons") if found is None else found
    names = [] if found is None else [each.tag for each in found if (each.text or "").strip() == "Active"]
    return {re.sub(r"^clocks_(event|throttle)_reasons?_", "", name) for name in names}
