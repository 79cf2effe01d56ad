"""Work the devices for minutes or hours, watch them, and judge what came out.

Runs twice: `look` says in a moment what there is to do, and changes nothing. `burn` is the work, in a unit of its own:
systemd starts the workers again when the unit is over, however it ends.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import device
from .children import together
from .hardware import SLOWED, refuse_bad_memory
from .host import Host
from .kernel_log import MENDS, XID
from .readings import Gpu, number, parsed, reasons, value
from .validate import without_device
from .verdict import Fault, NotApplicable, judged

STATE = Path("/var/lib/metalworks/gpu-burnin")
LAST = "last.json"
DRAINING = Path("/run/metalworks/draining")
"""While this says so, the host's workers take no runs; module drain_workers writes it."""
UNIT = "metalworks-gpu-burnin.service"
WORKERS = "prefect-worker-*.service"
GRACE_SECONDS = 300.0
"""What the work may take beyond its time, for compiling and for all patterns of the memory."""
PAIR_SECONDS = 20.0
SAMPLES = 600
SHORTEST_PERIOD = 2.0
REPLACE = "Take the device out of service, check it with NVIDIA's diagnostics (DCGM), and have it replaced"


def readings(host: Host) -> list[Gpu]:
    """Return the readings of all devices."""
    return [*map(Gpu, parsed(host.run("nvidia-smi", "-q", "-x")[1]).findall("gpu"))]


def serial(gpu: Gpu) -> str:
    """Return what names the device for all its life; those without a serial number have another such name."""
    return value(gpu.element, "serial") or value(gpu.element, "uuid") or gpu.address


def now() -> str:
    """Return the time, for people and programs."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def known(name: str) -> dict[str, Any] | None:
    """Return a result that was kept; None if there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads((STATE / name).read_text())
    except (OSError, ValueError):
        return None
    return found


def keep(name: str, content: dict[str, Any]) -> None:
    """Keep a result, whole or not at all."""
    STATE.mkdir(parents=True, exist_ok=True)
    draft = STATE / f".{name}.new"
    with draft.open("w") as file:
        json.dump(content, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(STATE / name)


# -- What there is to do


def versions(host: Host) -> dict[str, str]:
    """Return what a result depends on besides the device."""
    text = host.run("nvidia-smi", "-q", "-x")[1]
    return {
        "driver": value(parsed(text), "driver_version"),
        "kernel": host.read("/proc/sys/kernel/osrelease").strip(),
    }


def passed(gpu: Gpu, on: dict[str, str], want: dict[str, Any]) -> dict[str, Any] | None:
    """Return the device's result if it still holds: not too old, not too short, with the same driver and kernel."""
    found = known(f"{serial(gpu)}.json")
    if not found or not found["ok"] or any(found[name] != version for name, version in on.items()):
        return None
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["ended"])
    recent = age < datetime.timedelta(days=want["days"])
    return found if recent and found["minutes"] >= want["minutes"] else None


def workers(host: Host) -> list[str]:
    """Return the units of workers that have a GPU of their own."""
    listed = host.run("systemctl", "list-units", "--plain", "--no-legend", "--no-pager", WORKERS)[1]
    found = []
    for name in (line.split()[0] for line in listed.splitlines() if line.strip()):
        process = host.run("systemctl", "show", "--value", "--property=MainPID", name)[1].strip()
        if "\0CUDA_VISIBLE_DEVICES=" in "\0" + host.read(f"/proc/{process}/environ"):
            found.append(name)
    return found


def others(host: Host, gpus: list[Gpu], ours: list[str]) -> list[str]:
    """Return the programs that compute on devices and do not belong to these units."""
    found = []
    for gpu in gpus:
        for each in gpu.element.iter("process_info"):
            process = value(each, "pid")
            group = host.read(f"/proc/{process}/cgroup").strip().rpartition("/")[2]
            if value(each, "type") != "G" and group not in ours:
                found.append(f"process {process} ({group or value(each, 'process_name')}) on {gpu.name}")
    return found


def refuse_others(host: Host, gpus: list[Gpu], ours: list[str]) -> None:
    """Raise Fault if somebody else needs a device."""
    if found := others(host, gpus, ours):
        raise Fault(
            f"devices are in use: {', '.join(found)}",
            "Stop these programs (a service with `systemctl stop`), run this again, and start them afterwards",
        )
    for gpu in gpus:
        if gpu.mig:
            raise Fault(
                f"{gpu.name} is divided by MIG, and programs see one part of it",
                f"Run `nvidia-smi -i {gpu.address} -mig 0`, and divide it again afterwards",
            )


def look(host: Host, want: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict where nothing is to be done, and the workers that have to stop where something is."""
    if absent := without_device(host, want["require_device"]):
        return {"checks": [absent], "running": False, "workers": [], "serials": []}
    try:
        gpus, on = readings(host), versions(host)
    except NotApplicable:
        wrong = "nvidia-smi gives no readings"
        raise Fault(wrong, "Run `make gpu-validate`, which says why") from None
    if not gpus:
        raise Fault("the driver shows no device", "Run `make gpu-validate`, which says why")
    serials = [serial(gpu) for gpu in gpus]
    if host.run("systemctl", "is-active", UNIT)[1].strip() in ("active", "activating", "deactivating"):
        return {"checks": [], "running": True, "workers": [], "serials": serials}
    results = [None if want["force"] else passed(gpu, on, want) for gpu in gpus]
    if all(results):
        checks = [
            {"name": f"GPU {result['serial']}", "ok": True, "skipped": True, "seconds": 0.0,
             "detail": f"skipped: passed {result['minutes']} minutes on {result['ended'][:10]}, with this driver and "
             "kernel"} for result in results if result
        ]  # fmt: skip
        return {"checks": checks, "running": False, "workers": [], "serials": serials}
    ours = workers(host)
    refuse_others(host, gpus, ours)
    return {"checks": [], "running": False, "workers": ours, "serials": serials}


# -- The work


def sample(gpu: Gpu) -> dict[str, Any]:
    """Return how a device is at this moment."""
    element = gpu.element
    power = (number(element, f"{group}_readings/{draw}") for group in ("gpu_power", "power")
             for draw in ("instant_power_draw", "power_draw", "average_power_draw"))  # fmt: skip
    return {
        "at": time.monotonic(),
        "temperature": number(element, "temperature/gpu_temp"),
        "power": next((each for each in power if each is not None), None),
        "clock": number(element, "clocks/sm_clock"),
        "slowed": sorted(reasons(gpu) & SLOWED.keys()),
        "errors": sum(errors(gpu).values()),
    }


def errors(gpu: Gpu) -> dict[str, int]:
    """Return the device's counters of memory errors since the driver was loaded."""
    counts = gpu.element.find("ecc_errors/volatile")
    return {} if counts is None else {
        each.tag: int(each.text or 0) for each in counts.iter() if (each.text or "").strip().isdigit()
    }  # fmt: skip


class Watch:
    """Readings of the devices, taken again and again."""

    def __init__(self, host: Host, seconds: float) -> None:
        """Take as many as a plot can show."""
        self.host, self.period, self.next = host, max(SHORTEST_PERIOD, seconds / SAMPLES), 0.0
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def __call__(self) -> None:
        """Take readings if it is time."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.period
        with contextlib.suppress(NotApplicable):  # a reading that failed is missing in the plot; the last one is judged
            for gpu in readings(self.host):
                self.samples.setdefault(serial(gpu), []).append(sample(gpu))


def burn(host: Host, want: dict[str, Any]) -> dict[str, Any]:
    """Stop the workers, work all devices, and return the verdict on them."""
    before, on = readings(host), versions(host)
    if want["workers"]:
        code, out = host.run("systemctl", "stop", *want["workers"], seconds=150)
        if code:
            raise Fault(f"the workers do not stop: {out.strip()[-200:]}", "See their journal, and run this again")
    DRAINING.unlink(missing_ok=True)  # so that workers without a GPU go on
    refuse_others(host, readings(host), [])
    began, start, stamp = now(), time.monotonic(), int(time.time())
    seconds = 60.0 * want["minutes"]
    watch = Watch(host, seconds)
    addresses = [gpu.address for gpu in before]
    works = [functools.partial(work_one, address, seconds) for address in addresses]
    told = together(host.library, works, seconds + GRACE_SECONDS, watch)
    copies = []
    if len(before) > 1 and all(each[-1]["part"] == "end" for each in told):
        limit = PAIR_SECONDS + GRACE_SECONDS
        copies = together(host.library, [functools.partial(work_pairs, addresses)], limit, watch)[0]
    log = host.run("journalctl", "-k", "-b", "-o", "cat", "--no-pager", f"--since=@{stamp}")
    try:
        after = {serial(gpu): gpu for gpu in readings(host)}
    except NotApplicable:
        after = {}
    verdicts = []
    for gpu, parts in zip(before, told, strict=True):
        run = Run(gpu, after.get(serial(gpu)), parts, copies, watch.samples.get(serial(gpu), []), log, want)
        checks = run.checks()
        verdicts += checks
        keep(f"{serial(gpu)}.json", {
            "serial": serial(gpu), "product": gpu.product, "address": gpu.address, **on, "minutes": want["minutes"],
            "began": began, "ended": now(), "ok": all(check["ok"] for check in checks), "checks": checks,
            "samples": [each | {"at": round(each["at"] - start, 1)} for each in run.samples],
            "measured": [each | {"began": round(each["began"] - start, 1), "ended": round(each["ended"] - start, 1)}
                         for each in parts if "began" in each],
            "copies": run.copies,
        })  # fmt: skip
    return {"checks": verdicts}


def work_one(address: str, seconds: float, library: Any, tell: Callable[[dict[str, Any]], None]) -> None:
    """Work one device."""
    device.burn(library, address, seconds, tell)


def work_pairs(addresses: list[str], library: Any, tell: Callable[[dict[str, Any]], None]) -> None:
    """Copy between devices."""
    device.pairs(library, addresses, PAIR_SECONDS, tell)


# -- The verdict


class Run:
    """What is known of one device at the end."""

    def __init__(self, gpu: Gpu, after: Gpu | None, parts: list[dict[str, Any]], copies: list[dict[str, Any]],
                 samples: list[dict[str, Any]], log: tuple[int, str], want: dict[str, Any]) -> None:  # fmt: skip
        """Take it."""
        self.gpu, self.after, self.parts, self.samples, self.log, self.want = gpu, after, parts, samples, log, want
        self.copies = [each for each in copies if each["part"] != "end" and gpu.address in
                       (each.get("from", gpu.address), each.get("to"))]  # fmt: skip
        self.last = parts[-1]
        name = re.sub(r"^(NVIDIA|Tesla) ", "", gpu.product)
        self.model = next((row for row in want["models"]["models"] if name in row["names"]), None)

    def checks(self) -> list[dict[str, Any]]:
        """Return the verdict of each check."""
        return [judged(f"GPU {serial(self.gpu)} {name}", getattr(self, f"check_{name}")) for name in CHECKS] + (
            [judged(f"GPU {serial(self.gpu)} copies", self.check_copies)] if self.copies else []
        )

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return what one kind of work told, each time."""
        return [part for part in self.parts if part["part"] == name]

    def names(self) -> list[str]:
        """Return the precisions that the device multiplied in."""
        return list(dict.fromkeys(part["part"] for part in self.parts if "launches" in part))

    def check_work(self) -> str:
        """The work came to its end, and finds errors."""
        if self.last["part"] == "error":
            wrong = self.last["error"]
            if self.last["planted"]:
                raise Fault(
                    f"{self.gpu.name} did not find an error that was made on purpose: {wrong}",
                    f"{REPLACE}; if another device of this model says the same, report it with this text",
                )
            raise Fault(
                f"the work on {self.gpu.name} ended early: {wrong}",
                "Run `nvidia-smi` and `journalctl -k -b | grep NVRM` on the host, which say more, and reboot",
            )
        return f"{self.gpu.product} at {self.gpu.address.lower()[-12:]}, {self.want['minutes']} minutes"

    def check_products(self) -> str:
        """Every product was right."""
        told = []
        for name in self.names():
            wrong, launches = (sum(part[key] for part in self.of(name)) for key in ("wrong", "launches"))
            if wrong:
                last = next(part for part in reversed(self.of(name)) if part["wrong"])
                raise Fault(
                    f"{wrong} elements of products in {name} were wrong, in {launches} launches; the last ones on "
                    f"multiprocessor {last['processor']} of {last['processors']}",
                    REPLACE,
                )
            told.append(f"{name} {launches}")
        if not told:
            raise NotApplicable("nothing was multiplied: see the check of the work")
        return f"all right, launches: {', '.join(told)}"

    def check_memory(self) -> str:
        """Every word was what was written."""
        found = self.of("memory")
        if not found:
            raise NotApplicable("no pattern was written: see the check of the work")
        passes, wrong = (sum(part[key] for part in found) for key in ("passes", "wrong"))
        wrong_copies = sum(part["wrong"] for part in self.of("bandwidth"))
        if wrong:
            bits, patterns = 0, sorted({name for part in found for name in part["patterns"]})
            for part in found:
                bits |= part["bits"]
            lowest = min(part["address"] for part in found if part["wrong"])
            raise Fault(
                f"{wrong} words were wrong in {passes} passes, from address {lowest:#x} on, in bits {bits:#010x}, with "
                f"{', '.join(patterns)}",
                REPLACE,
            )
        if wrong_copies:
            raise Fault(f"{wrong_copies} words were wrong after copies within the memory", REPLACE)
        size = found[0]["bytes"] / 2**30
        return f"{passes} passes over {size:.1f} GiB, all right"

    def speed(self, name: str) -> float:
        """Return how fast the device was, in most of its turns."""
        return float(statistics.median(part["value"] for part in self.of(name)))

    def clock(self, name: str) -> int | None:
        """Return the clock in MHz while it did this."""
        spans = [(part["began"], part["ended"]) for part in self.of(name)]
        found = [each["clock"] for each in self.samples
                 if each["clock"] and any(start <= each["at"] <= end for start, end in spans)]  # fmt: skip
        found = found or [each["clock"] for each in self.samples if each["clock"]]
        return int(statistics.median(found)) if found else None

    def compare(self, name: str, unit: str, scale_by_clock: bool) -> str:
        """Return the speed; raise Fault if it is too little of what the data sheet says."""
        speed, model = self.speed(name), self.model or {}
        share, sheet = self.want["models"]["shares"].get(name), model.get(name)
        if not share or not sheet:
            return f"{name} {speed:.4g} {unit}"
        clock = self.clock(name) if scale_by_clock else None
        possible = sheet * min(1.0, clock / model["mhz"]) if clock else sheet
        at = f" at {clock} MHz" if clock else ""
        if speed < share * possible:
            raise Fault(
                f"{self.gpu.name} reaches {speed:.4g} {unit} in {name}: {speed / possible:.0%} of the {possible:.4g} "
                f"that its data sheet promises{at}, and at least {share:.0%} are right",
                "See the check of the clocks; run it again after a reboot, and have the device looked at if it stays",
            )
        return f"{name} {speed:.4g} {unit}{at}, {speed / possible:.0%}"

    def check_speed(self) -> str:
        """Products are as fast as the data sheet lets expect."""
        if not (names := self.names()):
            raise NotApplicable("nothing was multiplied: see the check of the work")
        told = "; ".join(self.compare(name, "TFLOPS" if name.startswith("fp") else "TOPS", True) for name in names)
        if not self.model:
            why = f"{self.gpu.product} is not in the table of models, so this is not judged: {told}"
            raise NotApplicable(why)
        return told

    def check_bandwidth(self) -> str:
        """Copies within the memory are as fast as the data sheet lets expect."""
        if not self.of("bandwidth"):
            raise NotApplicable("nothing was copied: see the check of the work")
        told = self.compare("bandwidth", "GB/s", False)
        if not self.model:
            why = f"{self.gpu.product} is not in the table of models, so this is not judged: {told}"
            raise NotApplicable(why)
        return told

    def check_clocks(self) -> str:
        """The device was not slowed for heat or by the power supply."""
        if not self.samples:
            raise NotApplicable("there are no readings under load: see the check of the work")
        for reason, (wrong, mend) in SLOWED.items():
            if count := sum(reason in each["slowed"] for each in self.samples):
                raise Fault(f"{self.gpu.name} {wrong}, in {count} of {len(self.samples)} readings", mend)
        told = []
        for name, unit in (("temperature", "°C"), ("power", "W"), ("clock", "MHz")):
            if found := [each[name] for each in self.samples if each[name] is not None]:
                told.append(f"{min(found)} to {max(found)} {unit}")
        return ", ".join(told) or "not slowed"

    def check_errors(self) -> str:
        """Neither the driver nor the device's memory has told of an error."""
        code, log = self.log
        if code:
            raise Fault(f"the kernel's log cannot be read: {log.strip()[:200]}", "Restart systemd-journald")
        place = self.gpu.address.lower()[-12:].partition(".")[0]
        # Of programs' errors, too: no other program was there.
        if found := [
            (int(xid), words) for address, xid, words in XID.findall(log) if place in f"0000{address}".lower()
        ]:
            xid, words = found[-1]
            raise Fault(
                f"the driver logged {len(found)} errors of {self.gpu.name}, the last one XID {xid}: {words[:160]}",
                MENDS.get(xid, f"Look up XID {xid} at docs.nvidia.com/deploy/xid-errors"),
            )
        if self.after is None:
            raise Fault(
                f"nvidia-smi does not show {self.gpu.name} any more",
                "Look for its address in `journalctl -k -b`, then switch the machine off and on",
            )
        refuse_bad_memory(self.after)
        corrected = sum(errors(self.after).values()) - sum(errors(self.gpu).values())
        return "no XID" + (f"; {corrected} memory errors, all corrected" if corrected > 0 else ", no memory error")

    def check_copies(self) -> str:
        """Copies to and from the other devices are right."""
        failed = next((each for each in self.copies if each["part"] == "error"), None)
        if failed:
            raise Fault(
                f"copies between devices ended early: {failed['error']}",
                "Run `nvidia-smi topo -m` and `journalctl -k -b | grep NVRM` on the host, and reboot",
            )
        for each in self.copies:
            if each["wrong"]:
                raise Fault(
                    f"{each['wrong']} words were wrong after a copy from {each['from']} to {each['to']}",
                    "Check the NVLink bridge or the PCIe slots, and IOMMU and ACS in the firmware's setup",
                )
        speeds = [each["value"] for each in self.copies]
        return f"{len(speeds)} ways, all right, {min(speeds):.3g} to {max(speeds):.3g} GB/s; not judged"


CHECKS = ("work", "products", "memory", "errors", "clocks", "speed", "bandwidth")


def main(want: dict[str, Any]) -> None:
    """Look, or do the work and keep the result."""
    host = Host()
    try:
        if want["do"] == "look":
            print(json.dumps(look(host, want)))
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before it was done"))  # raises: children are killed
        keep(LAST, burn(host, want))
    except Fault as fault:
        if want["do"] != "look":
            keep(LAST, {"unchecked": str(fault)})
        raise SystemExit(str(fault)) from None
