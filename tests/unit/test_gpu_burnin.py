"""The burn-in of GPUs: what it finds, how it judges, and what it leaves.

A small stand-in for the driver's library has memory that holds what is written, and does what the programs would do. No
test here has run on a device. The programs themselves run in an interpreter of PTX, thread by thread.
"""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roles.gpu_checks.files.gpu_checks import burnin, children, device, kernels, readings
from roles.gpu_checks.files.gpu_checks.host import Host
from roles.gpu_checks.files.gpu_checks.verdict import Fault
from tests.unit import ptx
from tests.unit.repository import ROOT, load, read_yaml

MODELS = read_yaml(ROOT / "roles/gpu_checks/files/models.yml")
H200 = (ROOT / "tests/unit/gpu_readings/h200.xml").read_text()
# What the recording lacks, as nvidia-smi writes it.
MORE = """
  <serial>1654923000001</serial>
  <temperature><gpu_temp>61 C</gpu_temp></temperature>
  <gpu_power_readings><instant_power_draw>612.40 W</instant_power_draw></gpu_power_readings>
</gpu>"""
BUSY = H200.replace("</gpu>", MORE).replace("<sm_clock>345 MHz", "<sm_clock>1980 MHz", 1)
SERIAL = "1654923000001"
DRIVER, KERNEL = "550.90.12", "6.1.0-30-amd64"
ADDRESS = "00000000:03:00.0"


# -- A stand-in for the driver's library


class Simulated:
    """Devices with a small memory, whose programs are these methods."""

    def __init__(self, addresses: tuple[str, ...] = ("0000:03:00.0",), *, capability: int = 90, **spoilt: Any) -> None:
        self.addresses, self.capability, self.spoilt = addresses, capability, spoilt
        self.size, self.launches = 1 << 11, 0
        self.next = 1 << 36
        self.memory: dict[int, bytearray] = {}
        self.functions: list[tuple[str, str]] = []
        self.modules: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.spoilt.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if name == self.spoilt.get("fail"):
                return 719
            done = getattr(type(self), f"do_{name}", None)
            return (done(self, *arguments) if done else 0) or 0

        return call

    def do_cuGetErrorName(self, code: int, name: Any) -> None:
        name._obj.value = b"CUDA_ERROR_LAUNCH_FAILED"

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.addresses)

    def do_cuDeviceGet(self, found: Any, number: int) -> None:
        found._obj.value = number

    def do_cuDeviceGetPCIBusId(self, buffer: Any, size: int, found: Any) -> None:
        buffer.value = self.addresses[found.value].encode()

    def do_cuDeviceGetAttribute(self, held: Any, number: int, found: Any) -> None:
        held._obj.value = {16: 2, 75: self.capability // 10, 76: self.capability % 10}[number]

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        total._obj.value = self.size
        free._obj.value = self.size

    def do_cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        if self.spoilt.get("full"):
            return 2
        pointer._obj.value = self.next
        self.memory[self.next] = bytearray(size.value)
        self.next += (size.value + 511) // 256 * 256
        return 0

    def place(self, address: int) -> tuple[bytearray, int]:
        start = max(each for each in self.memory if each <= address)
        return self.memory[start], address - start

    def put(self, address: int, data: bytes) -> None:
        held, at = self.place(address)
        assert at + len(data) <= len(held)
        held[at : at + len(data)] = data

    def get(self, address: int, size: int) -> bytes:
        held, at = self.place(address)
        assert at + size <= len(held)
        return bytes(held[at : at + size])

    def do_cuMemcpyHtoD_v2(self, pointer: Any, data: bytes, size: Any) -> None:
        self.put(pointer.value, data[: size.value])

    def do_cuMemcpyDtoH_v2(self, buffer: Any, pointer: Any, size: Any) -> None:
        ctypes.memmove(buffer, self.get(pointer.value, size.value), size.value)

    def do_cuMemsetD32_v2(self, pointer: Any, word: Any, count: Any) -> None:
        self.put(pointer.value, struct.pack("<I", word.value) * count.value)

    def do_cuMemcpyDtoD_v2(self, target: Any, source: Any, size: Any) -> None:
        data = bytearray(self.get(source.value, size.value))
        if self.spoilt.get("copy"):
            data[40] ^= 8
        self.put(target.value, data)

    def do_cuMemcpyPeer(self, target: Any, _: Any, source: Any, __: Any, size: Any) -> None:
        data = bytearray(self.get(source.value, size.value))
        if self.spoilt.get("peer"):
            data[40] ^= 8
        self.put(target.value, data)

    def do_cuModuleLoadData(self, module: Any, source: bytes) -> None:
        self.modules.append(source.decode().rstrip("\0"))
        module._obj.value = len(self.modules)

    def do_cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> None:
        self.functions.append((self.modules[module.value - 1], name.decode()))
        function._obj.value = len(self.functions)

    def do_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        source, name = self.functions[function.value - 1]
        wide = 6
        types = (
            [ctypes.c_uint64] * 4 + [ctypes.c_uint32]
            if name == "product"
            else [ctypes.c_uint64] * 2 + [ctypes.c_uint32] * 3 + [ctypes.c_uint64]
        )
        values = [kind.from_address(rest[8][at]).value for at, kind in zip(range(wide), types, strict=False)]
        getattr(self, name)(source, rest[0], *values)

    def record(self, address: int, count: int, bits: int, lowest: int) -> None:
        old = struct.unpack("<IIQ", self.get(address, 16))
        self.put(address, struct.pack("<IIQ", old[0] + count, old[1] | bits, min(old[2], lowest)))

    def product(self, source: str, blocks: int, left: int, right: int, expected: int, record: int, rounds: int) -> None:
        kind = next(each for each in kernels.KINDS if kernels.ptx(each) == source)
        a, b, c = kernels.matrices(kind)
        assert (self.get(left, len(a)), self.get(right, len(b)), rounds) == (a, b, kind.rounds)
        said = self.get(expected, len(c))
        copies = blocks * (kind.threads // 32 if kind.tensor else 1)
        differ = said != c and sum(
            said[at : at + kind.size] != c[at : at + kind.size] for at in range(0, len(c), kind.size)
        )
        wrong = 0 if self.spoilt.get("blind") == kind.name else differ * copies
        self.launches += 1
        if self.spoilt.get("wrong") == kind.name and self.launches > len(kernels.KINDS):
            wrong += 3
        if wrong:
            self.record(record, wrong, 1, (1 << 64) - 1)

    def words(self, begin: int, units: int, mode: int, seed: int, shift: int) -> Iterator[tuple[int, int]]:
        pattern = kernels.Pattern("", mode, seed, shift)
        return ((begin + 4 * i, pattern.word(begin + 4 * i, i)) for i in range(4 * units))

    def fill(self, _: str, blocks: int, begin: int, units: int, mode: int, seed: int, shift: int, record: int) -> None:
        right = struct.pack(f"<{4 * units}I", *(word for _, word in self.words(begin, units, mode, seed, shift)))
        if self.spoilt.get("stuck"):  # a bit of one word that is always 1
            data = bytearray(right)
            data[80] |= 4
            right = bytes(data)
        self.put(begin, right)

    def check(self, _: str, blocks: int, begin: int, units: int, mode: int, seed: int, shift: int, record: int) -> None:
        found = struct.unpack(f"<{4 * units}I", self.get(begin, 16 * units))
        for (address, right), word in zip(self.words(begin, units, mode, seed, shift), found, strict=True):
            if word != right and self.spoilt.get("blind") != "memory":
                self.record(record, 1, word ^ right, address)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make work short, and programs cheap to tell apart."""
    monkeypatch.setattr(device, "SHORTEST", 0.01)
    monkeypatch.setattr(device, "LAUNCH_SECONDS", 0.0)
    monkeypatch.setattr(device, "PIECE", 1 << 10)
    monkeypatch.setattr(device, "SPARE", 1 << 8)
    monkeypatch.setattr(burnin, "SHORTEST_PERIOD", 0.05)
    monkeypatch.setattr(children, "PERIOD_SECONDS", 0.02)
    for name in ("ptx", "matrices"):
        known = {kind: getattr(kernels, name)(kind) for kind in kernels.KINDS}
        monkeypatch.setattr(kernels, name, known.__getitem__)
        monkeypatch.setattr(device, name, known.__getitem__)
    return monkeypatch


def burnt(library: Any, seconds: float = 0.05) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    device.burn(library, ADDRESS, seconds, told.append)
    assert json.dumps(told)
    return told


def of(told: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in told if each["part"] == name]


def test_a_good_device_does_all_kinds_of_work(quick: pytest.MonkeyPatch) -> None:
    library = Simulated()
    told = burnt(library)
    names = [kind.name for kind in kernels.KINDS]
    assert list(dict.fromkeys(each["part"] for each in told)) == [*names, "bandwidth", "memory", "end"]
    assert [each["wrong"] for each in told[:-1]] == [0] * (len(told) - 1)
    assert of(told, "memory")[0]["passes"] >= len(kernels.PATTERNS)
    assert of(told, "memory")[0]["bytes"] >= library.size * 3 // 4
    assert all(each["value"] > 0 for each in told if each["part"] in (*names, "bandwidth"))


def test_a_device_does_what_its_generation_can(quick: pytest.MonkeyPatch) -> None:
    can = {50: 3, 61: 4, 70: 5, 75: 6}
    for capability, count in can.items():
        told = burnt(Simulated(capability=capability), 0.0)
        assert len({each["part"] for each in told if "launches" in each}) == count, capability


@pytest.mark.parametrize("kind", kernels.KINDS, ids=lambda kind: kind.name)
def test_wrong_elements_are_counted(quick: pytest.MonkeyPatch, kind: kernels.Kind) -> None:
    told = burnt(Simulated(wrong=kind.name), 0.0)
    assert {each["part"]: each["wrong"] for each in told[:-1] if each["wrong"]} == {kind.name: 3}


def test_a_bit_that_is_stuck_is_found(quick: pytest.MonkeyPatch) -> None:
    told = burnt(Simulated(stuck=True))
    assert told[-1]["planted"]  # it is found already where one wrong bit was planted, and two are there
    quick.setattr(device.Memory, "prove", lambda *_: None)
    told = burnt(Simulated(stuck=True))
    found = of(told, "memory")[0]
    assert found["wrong"] > 0
    assert found["bits"] == 4
    assert found["address"] % 256 == 80
    assert {"walking one", "walking zero", "all zeros"} <= {*found["patterns"]}
    assert "all ones" not in found["patterns"]


def test_a_wrong_copy_is_found(quick: pytest.MonkeyPatch) -> None:
    found = of(burnt(Simulated(copy=True)), "bandwidth")[0]
    assert (found["wrong"], found["bits"]) == (1, 8)


@pytest.mark.parametrize("name", [*(kind.name for kind in kernels.KINDS), "memory"])
def test_work_that_finds_no_planted_error_is_refused(quick: pytest.MonkeyPatch, name: str) -> None:
    told = burnt(Simulated(blind=name))
    assert [each["part"] for each in told] == ["error"]
    assert told[0]["planted"]


def test_an_error_of_the_library_ends_the_work_with_its_name(quick: pytest.MonkeyPatch) -> None:
    told = burnt(Simulated(fail="cuCtxSynchronize"))
    assert told == [{"part": "error", "planted": False, "error": "cuCtxSynchronize: CUDA_ERROR_LAUNCH_FAILED",
                     "code": 719}]  # fmt: skip
    assert burnt(Simulated(("0000:04:00.0",)))[-1]["error"] == f"programs do not see the device at {ADDRESS}"
    assert burnt(Simulated(full=True))[-1]["code"] == 2


def test_devices_copy_to_each_other(quick: pytest.MonkeyPatch) -> None:
    both = ("0000:03:00.0", "0000:04:00.0")
    for spoilt in (False, True):
        told: list[dict[str, Any]] = []
        device.pairs(Simulated(both, peer=spoilt), [*both], 0.01, told.append)
        assert [(each["from"], each["to"], each["wrong"]) for each in told[:-1]] == [
            (both[0], both[1], int(spoilt)),
            (both[1], both[0], int(spoilt)),
        ]
        assert told[-1] == {"part": "end"}


# -- Processes of their own


def test_a_crash_ends_only_its_process(quick: pytest.MonkeyPatch) -> None:
    libraries = iter([Simulated(), Simulated(die="cuMemcpyDtoD_v2")])
    quick.setattr(ctypes, "CDLL", lambda name: next(libraries))
    looks: list[int] = []

    def work(library: Any, tell: children.Tell) -> None:
        device.burn(library, ADDRESS, 0.05, tell)

    def second(library: Any, tell: children.Tell) -> None:
        device.burn(Simulated(die="cuMemcpyDtoD_v2"), ADDRESS, 0.05, tell)

    good, bad = children.together("libcuda", [work, second], 60, lambda: looks.append(1))
    assert good[-1] == {"part": "end"}
    assert bad[-1] == children.CRASHED
    assert of(bad, "fp64")
    assert looks


def test_work_that_hangs_is_left() -> None:
    def hang(library: Any, tell: children.Tell) -> None:
        tell({"part": "fp32"})
        signal.pause()

    (told,) = children.together("libc.so.6", [hang], 3, lambda: None)
    assert told == [{"part": "fp32"}, children.CRASHED]


def test_a_missing_library_is_told() -> None:
    (told,) = children.together("libmetalworks-none.so.1", [lambda *_: None], 5, lambda: None)
    assert "libmetalworks-none.so.1" in told[-1]["error"]


# -- The verdict


GOOD: list[dict[str, Any]] = [
    {"part": kind.name, "began": 10.0, "ended": 20.0, "launches": 90, "wrong": 0, "processor": 0, "processors": 132,
     "value": {"fp32": 55.0, "fp64": 28.0, "fp16 tensor": 560.0, "int8 tensor": 700.0}.get(kind.name, 20.0)}
    for kind in kernels.KINDS
] + [
    {"part": "bandwidth", "began": 20.0, "ended": 30.0, "copies": 900, "wrong": 0, "bits": 0, "value": 4100.0},
    {"part": "memory", "began": 30.0, "ended": 40.0, "passes": 70, "wrong": 0, "bits": 0, "address": 0, "patterns": [],
     "bytes": 139 << 30},
    {"part": "end"},
]  # fmt: skip
COPIES = [
    {"part": "copy", "from": ADDRESS, "to": "00000000:04:00.0", "value": 41.0, "wrong": 0, "bits": 0},
    {"part": "copy", "from": "00000000:04:00.0", "to": ADDRESS, "value": 40.0, "wrong": 0, "bits": 0},
    {"part": "end"},
]
WANT = {"do": "burn", "minutes": 30, "days": 90, "force": False, "require_device": True, "workers": [],
        "models": MODELS}  # fmt: skip


def gpu(text: str = BUSY) -> readings.Gpu:
    return readings.Gpu(readings.parsed(text).findall("gpu")[0])


class Burnt:
    """What is known at the end of a burn-in, to be spoilt."""

    def __init__(self) -> None:
        self.text, self.parts = BUSY, [dict(each) for each in GOOD]
        self.after: readings.Gpu | None = gpu()
        self.copies = [dict(each) for each in COPIES]
        self.samples = [burnin.sample(gpu()) | {"at": float(at)} for at in range(0, 40, 2)]
        self.log = (0, "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  550.90.12\n")

    def checks(self) -> dict[str, dict[str, Any]]:
        run = burnin.Run(gpu(self.text), self.after, self.parts, self.copies, self.samples, self.log, WANT)
        found = {each["name"].removeprefix(f"GPU {SERIAL} "): each for each in run.checks()}
        assert json.dumps(found)
        return found

    def part(self, name: str) -> dict[str, Any]:
        return next(each for each in self.parts if each["part"] == name)


def failed(found: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, each in found.items() if not each["ok"]]


def test_a_good_device_passes() -> None:
    found = Burnt().checks()
    assert list(found) == [*burnin.CHECKS, "copies"]
    assert failed(found) == []
    assert [name for name, each in found.items() if each["skipped"]] == []
    assert found["memory"]["detail"] == "70 passes over 139.0 GiB, all right"
    assert found["clocks"]["detail"] == "61 to 61 °C, 612 to 612 W, 1980 to 1980 MHz"
    assert found["bandwidth"]["detail"] == "bandwidth 4100 GB/s, 85%"
    assert "fp32 55 TFLOPS at 1980 MHz, 82%" in found["speed"]["detail"]
    assert found["copies"]["detail"] == "2 ways, all right, 40 to 41 GB/s; not judged"


def spoil(name: str, **changes: Any) -> Callable[[Burnt], None]:
    return lambda burn: burn.part(name).update(changes)


def slowed(reason: str) -> Callable[[Burnt], None]:
    return lambda burn: burn.samples[3].update(slowed=[reason])


def after(old: str, new: str) -> Callable[[Burnt], None]:
    def change(burn: Burnt) -> None:
        assert old in BUSY
        burn.after = gpu(BUSY.replace(old, new, 1))

    return change


def logged(line: str) -> Callable[[Burnt], None]:
    return lambda burn: setattr(burn, "log", (0, line))


def ended(**error: Any) -> Callable[[Burnt], None]:
    def change(burn: Burnt) -> None:
        burn.parts[-1] = {"part": "error", "planted": False, "code": 719} | error

    return change


SPOILT: list[tuple[str, Callable[[Burnt], None], str, str]] = [
    ("work", ended(error="cuCtxSynchronize: CUDA_ERROR_LAUNCH_FAILED"), "CUDA_ERROR_LAUNCH_FAILED", "reboot"),
    ("work", ended(error="fp32: of 16 wrong elements it found 0", planted=True), "made on purpose: fp32", "replaced"),
    *(("products", spoil(kind.name, wrong=5, processor=17), f"5 elements of products in {kind.name} were wrong, in 90 "
       "launches; the last ones on multiprocessor 17 of 132", "replaced") for kind in kernels.KINDS),
    ("memory", spoil("memory", wrong=2, bits=4, address=0x7F0000001000, patterns=["address"]),
     "2 words were wrong in 70 passes, from address 0x7f0000001000 on, in bits 0x00000004, with address", "replaced"),
    ("memory", spoil("bandwidth", wrong=1), "1 words were wrong after copies", "replaced"),
    ("bandwidth", spoil("bandwidth", value=2000.0), "reaches 2000 GB/s in bandwidth: 42% of the 4800", "reboot"),
    *(("speed", spoil(name, value=5.0), f"in {name}: ", "clocks") for name in
      ("fp32", "fp64", "fp16 tensor", "int8 tensor")),
    ("clocks", slowed("hw_thermal_slowdown"), "too hot, in 1 of 20 readings", "airflow"),
    ("clocks", slowed("sw_thermal_slowdown"), "does not become too hot", "airflow"),
    ("clocks", slowed("hw_power_brake_slowdown"), "power supply", "power cables"),
    ("clocks", slowed("hw_slowdown"), "slowed by its hardware", "cooling"),
    ("errors", logged("NVRM: Xid (PCI:0000:03:00): 79, pid=1, GPU has fallen off the bus."), "XID 79", "off and on"),
    ("errors", logged("NVRM: Xid (PCI:0000:03:00): 13, pid=1, Graphics SM Warp Exception"), "XID 13", "Look up XID 13"),
    ("errors", lambda burn: setattr(burn, "log", (1, "no journal")), "cannot be read: no journal", "journald"),
    ("errors", lambda burn: setattr(burn, "after", None), "does not show NVIDIA H200", "off and on"),
    ("errors", after("<dram_uncorrectable>0<", "<dram_uncorrectable>2<"), "2 uncorrected", "Reset"),
    ("errors", after("row_pending>No<", "row_pending>Yes<"), "waits to be replaced", "Reset"),
    ("errors", after("row_failure>No<", "row_failure>Yes<"), "could not remap", "replaced"),
    ("copies", lambda burn: burn.copies[0].update(wrong=4), f"4 words were wrong after a copy from {ADDRESS}", "IOMMU"),
    ("copies", lambda burn: burn.copies.append({"part": "error", "error": "cuMemcpyPeer: CUDA_ERROR_UNKNOWN"}),
     "CUDA_ERROR_UNKNOWN", "topo -m"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "wrong", "mend"), SPOILT, ids=[f"{s[0]}: {s[2][:40]}" for s in SPOILT])
def test_one_spoilt_result_fails_one_check(name: str, change: Callable[[Burnt], None], wrong: str, mend: str) -> None:
    burn = Burnt()
    change(burn)
    found = burn.checks()
    assert failed(found) == [name]
    detail = found[name]["detail"]
    assert wrong in detail
    assert mend in detail[detail.index(wrong) + len(wrong) :]
    assert detail.endswith(".")
    assert "the check itself failed" not in detail


def test_every_check_is_spoilt() -> None:
    assert {spoilt[0] for spoilt in SPOILT} == {*burnin.CHECKS, "copies"}


def test_another_devices_errors_do_not_count() -> None:
    burn = Burnt()
    burn.log = (0, "NVRM: Xid (PCI:0000:13:00): 79, pid=1, GPU has fallen off the bus.")
    assert failed(burn.checks()) == []


def test_a_device_that_crashed_passes_nothing() -> None:
    burn = Burnt()
    burn.parts, burn.samples, burn.copies = [children.CRASHED], [], []
    found = burn.checks()
    assert failed(found) == ["work"]
    assert [name for name, each in found.items() if not each["skipped"]] == ["work", "errors"]


def test_an_unknown_model_is_measured_and_not_judged() -> None:
    burn = Burnt()
    burn.text = BUSY.replace("NVIDIA H200", "NVIDIA B300 SXM6")
    burn.part("fp32")["value"] = 0.1
    found = burn.checks()
    assert failed(found) == []
    assert [name for name, each in found.items() if each["skipped"]] == ["speed", "bandwidth"]
    assert "B300 SXM6 is not in the table of models, so this is not judged" in found["speed"]["detail"]
    assert "fp32 0.1 TFLOPS" in found["speed"]["detail"]


def test_less_is_asked_for_at_a_lower_clock() -> None:
    burn = Burnt()
    burn.part("fp32")["value"] = 12.0
    assert failed(burn.checks()) == ["speed"]
    for each in burn.samples:
        each["clock"] = 1200  # at a power limit
    found = burn.checks()
    assert failed(found) == []
    assert "fp32 12 TFLOPS at 1200 MHz, 30%" in found["speed"]["detail"]


def test_corrected_errors_are_told() -> None:
    burn = Burnt()
    after("<dram_correctable>0<", "<dram_correctable>7<")(burn)
    assert burn.checks()["errors"]["detail"] == "no XID; 7 memory errors, all corrected"


# -- The table of models


def test_rows_of_the_table_are_complete() -> None:
    names = list(itertools.chain.from_iterable(row["names"] for row in MODELS["models"]))
    assert len(names) == len({*names})
    for row in MODELS["models"]:
        assert {*row} <= {"names", "mhz", *MODELS["shares"]}
        assert {"names", "mhz", "bandwidth", "fp32", "fp16 tensor"} <= {*row}
    kinds = {kind.name for kind in kernels.KINDS}
    assert {*MODELS["shares"]} <= {*kinds, "bandwidth"}
    assert all(0 < share < 1 for share in MODELS["shares"].values())


@pytest.mark.parametrize("name", ["h200", "l4", "v100s", "a100_mig"])
def test_models_of_recorded_devices_are_in_the_table(name: str) -> None:
    text = (ROOT / f"tests/unit/gpu_readings/{name}.xml").read_text()
    assert burnin.Run(gpu(text), None, [{"part": "end"}], [], [], (0, ""), WANT).model


# -- What there is to do, and the whole of it


class Recorded(Host):
    """A host with the recorded device, and programs that answer as they would."""

    def __init__(self) -> None:
        self.text, self.log, self.active = BUSY, (0, ""), "inactive"
        self.stops: tuple[int, str] = (0, "")
        self.calls: list[str] = []
        self.pci = ["0000:03:00.0"]
        self.files = {
            "/proc/sys/kernel/osrelease": f"{KERNEL}\n",
            "/proc/41/environ": "A=1\0CUDA_VISIBLE_DEVICES=0\0",
            "/proc/42/environ": "A=1\0",
            "/proc/777/cgroup": "0::/system.slice/models-delay.service\n",
            "/proc/778/cgroup": "0::/system.slice/prefect-worker-gpu.service\n",
        }

    def using(self, process: int, kind: str = "C") -> None:
        """Let a process use the device."""
        listed = f"<processes><process_info><pid>{process}</pid><type>{kind}</type></process_info></processes></gpu>"
        self.text = self.text.replace("</gpu>", listed)

    def run(self, *command: str, seconds: float = 30, text: str | None = None) -> tuple[int, str]:
        words = " ".join(command)
        self.calls.append(words)
        if command[0] == "nvidia-smi":
            return 0, self.text
        if command[0] == "journalctl":
            return self.log
        if command[1] == "list-units":
            return 0, "prefect-worker-gpu.service loaded\nprefect-worker-cpu.service loaded\n"
        if command[1] == "show":
            return 0, "41\n" if command[-1] == "prefect-worker-gpu.service" else "42\n"
        if command[1] == "is-active":
            return 3, f"{self.active}\n"
        assert command[:2] == ("systemctl", "stop"), words
        return self.stops

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def container(self) -> bool:
        return False

    def devices(self) -> list[str]:
        return self.pci


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(burnin, "STATE", tmp_path / "state")
    monkeypatch.setattr(burnin, "DRAINING", tmp_path / "draining")
    return tmp_path / "state"


def kept(state: Path, **other: Any) -> None:
    ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    result = {"serial": SERIAL, "ok": True, "driver": DRIVER, "kernel": KERNEL, "minutes": 30}
    state.mkdir(exist_ok=True)
    (state / f"{SERIAL}.json").write_text(json.dumps(result | {"ended": ended.isoformat()} | other))


def test_only_workers_with_a_gpu_have_to_stop(state: Path) -> None:
    host = Recorded()
    host.using(778)  # a flow run, which is waited for
    assert burnin.look(host, WANT) == {
        "checks": [],
        "running": False,
        "workers": ["prefect-worker-gpu.service"],
        "serials": [SERIAL],
    }


def test_a_device_that_passed_is_spared(state: Path) -> None:
    kept(state)
    found = burnin.look(Recorded(), WANT)
    assert found["workers"] == []
    (check,) = found["checks"]
    assert (check["ok"], check["skipped"]) == (True, True)
    assert "passed 30 minutes on" in check["detail"]


OLD = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=91)).isoformat()


@pytest.mark.parametrize(
    ("result", "want"),
    [
        ({"ok": False}, {}),
        ({"driver": "535.1"}, {}),
        ({"kernel": "5.10.0"}, {}),
        ({"minutes": 10}, {}),
        ({"ended": OLD}, {}),
        ({}, {"force": True}),
        ({}, {"days": 0}),
    ],
)
def test_a_device_is_worked_again(state: Path, result: dict[str, Any], want: dict[str, Any]) -> None:
    kept(state, **result)
    assert burnin.look(Recorded(), WANT | want)["checks"] == []


def test_a_result_that_cannot_be_read_does_not_count(state: Path) -> None:
    kept(state)
    (state / f"{SERIAL}.json").write_text('{"ok": tr')
    assert burnin.look(Recorded(), WANT)["checks"] == []


def test_a_burn_in_that_runs_is_waited_for(state: Path) -> None:
    kept(state, ok=False)
    host = Recorded()
    host.active = "active"
    host.using(779)
    assert burnin.look(host, WANT)["running"]


def test_somebody_elses_program_is_not_disturbed(state: Path) -> None:
    host = Recorded()
    host.using(777)
    with pytest.raises(Fault, match=r"process 777 \(models-delay.service\) on NVIDIA H200.* `systemctl stop`"):
        burnin.look(host, WANT)
    host = Recorded()
    host.using(777, "G")  # a screen
    assert burnin.look(host, WANT)["workers"]


def test_a_divided_device_is_refused(state: Path) -> None:
    host = Recorded()
    host.text = re.sub(r"(<current_mig>)[^<]*", r"\1Enabled", host.text)
    with pytest.raises(Fault, match=r"divided by MIG.*-mig 0"):
        burnin.look(host, WANT)


def test_a_host_without_a_device_or_driver_says_so(state: Path) -> None:
    host = Recorded()
    host.pci = []
    (check,) = burnin.look(host, WANT)["checks"]
    assert not check["ok"]
    (check,) = burnin.look(host, WANT | {"require_device": False})["checks"]
    assert check["skipped"]
    host = Recorded()
    host.text = "NVIDIA-SMI has failed"
    with pytest.raises(Fault, match="make gpu-validate"):
        burnin.look(host, WANT)


def burnt_in(host: Recorded, library: Any, quick: pytest.MonkeyPatch, **want: Any) -> dict[str, Any]:
    quick.setattr(ctypes, "CDLL", lambda name: library)
    quick.setattr(burnin, "Host", lambda: host)
    quick.setattr(signal, "signal", lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(burnin, "work_one", lambda address, seconds, *rest: device.burn(rest[0], address, 0.1, rest[1]))
        burnin.main(WANT | want)
    found: dict[str, Any] = json.loads((burnin.STATE / burnin.LAST).read_text())
    return found


def test_the_result_is_kept_by_serial_number(state: Path, quick: pytest.MonkeyPatch) -> None:
    host = Recorded()
    burnin.DRAINING.touch()
    found = burnt_in(host, Simulated(), quick, workers=["prefect-worker-gpu.service"])
    assert not burnin.DRAINING.exists()  # other workers go on
    assert host.calls.index("systemctl stop prefect-worker-gpu.service") < 4
    slow = [each["name"].split()[-1] for each in found["checks"] if not each["ok"]]
    assert slow == ["speed", "bandwidth"]  # the stand-in does not compute much
    result = json.loads((state / f"{SERIAL}.json").read_text())
    assert (result["ok"], result["driver"], result["kernel"], result["minutes"]) == (False, DRIVER, KERNEL, 30)
    assert result["checks"] == found["checks"]
    assert {each["part"] for each in result["measured"]} == {
        *(each.name for each in kernels.KINDS),
        "bandwidth",
        "memory",
    }
    assert result["samples"][0]["temperature"] == 61
    assert [path.name for path in state.iterdir()] == unordered(f"{SERIAL}.json", "last.json")


def unordered(*names: str) -> Any:
    class Same:
        def __eq__(self, other: object) -> bool:
            return sorted(other) == sorted(names)  # type: ignore[call-overload,no-any-return]

    return Same()


def test_all_devices_copy_to_each_other(state: Path, quick: pytest.MonkeyPatch) -> None:
    host = Recorded()
    one = re.search(r"(?s)<gpu id=.*</gpu>", host.text)
    assert one
    other = one[0].replace("03:00.0", "04:00.0").replace(SERIAL, "1654923000002")
    host.text = host.text.replace(one[0], one[0] + other)
    quick.setattr(burnin, "PAIR_SECONDS", 0.01)
    found = burnt_in(host, Simulated(("0000:03:00.0", "0000:04:00.0")), quick)
    names = [each["name"] for each in found["checks"]]
    assert f"GPU {SERIAL} copies" in names
    assert "GPU 1654923000002 copies" in names
    assert len({*names}) == len(names) == 2 * (len(burnin.CHECKS) + 1)


def test_what_stands_in_the_way_is_kept_as_the_reason(state: Path, quick: pytest.MonkeyPatch) -> None:
    host = Recorded()
    host.stops = (1, "Job timed out")
    with pytest.raises(SystemExit, match="the workers do not stop: Job timed out"):
        burnt_in(host, Simulated(), quick, workers=["prefect-worker-gpu.service"])
    assert "do not stop" in json.loads((state / "last.json").read_text())["unchecked"]


# -- The role, the command and the plot


def test_the_program_takes_what_the_role_gives() -> None:
    """The role's program runs with the system's modules alone, and says why it cannot look here."""
    given = read_yaml(ROOT / "roles/gpu_checks/vars/main.yml")["__gpu_checks_want"]
    assert {*given, "do", "workers"} == {*WANT}
    lookup = load("plugins/lookup/python_program.py")
    text = lookup.program(ROOT / "roles/gpu_checks/files/gpu_checks", "burnin")
    want = json.dumps(json.dumps(WANT | {"do": "look", "require_device": False}))
    done = subprocess.run([sys.executable, "-I", "-"], input=f"{text}main(json.loads({want}))", capture_output=True,
                          text=True)  # fmt: skip
    assert done.stderr == ""
    assert json.loads(done.stdout)["checks"][0]["detail"].startswith("skipped: no device")


def test_the_unit_and_paths_are_the_same_everywhere() -> None:
    names = read_yaml(ROOT / "roles/gpu_checks/vars/main.yml")
    assert (names["__gpu_checks_unit"], names["__gpu_checks_state"]) == (burnin.UNIT, str(burnin.STATE))
    drain = load("plugins/modules/drain_workers.py")
    assert drain.DRAINING == burnin.DRAINING
    burn = (ROOT / "roles/gpu_checks/tasks/burn.yml").read_text()
    assert burn.count(str(burnin.DRAINING)) == 2
    assert f"/{burnin.LAST}" in burn


def test_a_plot_is_drawn_of_each_result(tmp_path: Path) -> None:
    plots = load("scripts/site/gpu_plot.py")
    samples = [{"at": 2.0 * i, "temperature": 40 + i, "power": 300, "clock": 1980, "slowed": []} for i in range(20)]
    samples[3] |= {"power": None, "slowed": ["hw_slowdown"]}
    result = {"serial": SERIAL, "product": "NVIDIA H200", "driver": DRIVER, "ok": False, "ended": OLD,
              "measured": GOOD[:-1], "samples": samples}  # fmt: skip
    plots.plot(result, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert f"NVIDIA H200, {SERIAL}: FAILED" in text
    for words in ("fp16 tensor [TFLOPS]", "int8 tensor [TOPS]", "bandwidth [GB/s]", "slowed for heat or power"):
        assert words in text


# -- The programs themselves, in an interpreter; it does not know tensor cores

BASE = 5 << 36
SCALAR = [kind for kind in kernels.KINDS if not kind.tensor]


def multiplied(kind: kernels.Kind, spoilt: int) -> tuple[int, int, set[int]]:
    """Run a product of two rounds; return how many elements it finds wrong, where, and which it has compared."""
    kind = dataclasses.replace(kind, rounds=2)
    a, b, expected = kernels.matrices(kind)
    memory = bytearray(a + b + expected + bytes(16))
    places = [BASE, BASE + len(a), BASE + len(a + b), BASE + len(a + b + expected)]
    memory[len(a + b) + spoilt * kind.size] ^= 1
    program = ptx.Program(kernels.ptx(kind), "product", BASE, memory)
    program.run(1, kind.threads, *places, kind.rounds)
    count, processor = struct.unpack("<II", memory[-16:-8])
    compared = [at for at in program.read_from if places[2] <= at < places[3]]
    assert len({*compared}) == len(compared)
    return count, processor, {(at - places[2]) // kind.size for at in compared}


@pytest.mark.parametrize("kind", SCALAR, ids=lambda kind: kind.name)
def test_the_program_multiplies_and_compares_every_element(kind: kernels.Kind) -> None:
    rows, columns, _ = kind.shape
    assert multiplied(kind, rows * columns - columns // 2) == (1, 7, {*range(rows * columns)})


@pytest.mark.parametrize("pattern", {each.name: each for each in kernels.PATTERNS}.values(), ids=lambda each: each.name)
def test_the_programs_write_and_compare_a_pattern(pattern: kernels.Pattern) -> None:
    units = 21
    memory = bytearray(16 * units + 16)
    given = (BASE, units, pattern.mode, pattern.seed, pattern.shift, BASE + 16 * units)
    ptx.Program(kernels.memory(), "fill", BASE, memory).run(2, 4, *given)
    words = struct.unpack(f"<{4 * units}I", memory[: 16 * units])
    assert words == tuple(pattern.word(BASE + 4 * number, number) for number in range(4 * units))
    check = ptx.Program(kernels.memory(), "check", BASE, memory)
    memory[16 * units :] = struct.pack("<IIQ", 0, 0, device.NONE)
    check.run(2, 4, *given)
    assert struct.unpack("<IIQ", memory[16 * units :]) == (0, 0, device.NONE)
    memory[4 * 50] ^= 0x10
    memory[4 * 33 + 1] ^= 0x80
    check.run(2, 4, *given)
    assert struct.unpack("<IIQ", memory[16 * units :]) == (2, 0x8010, BASE + 4 * 33)
