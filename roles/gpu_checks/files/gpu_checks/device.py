"""The work of a burn-in on one device: products, memory patterns and copies, each compared with what is right."""

from __future__ import annotations

import ctypes
import itertools
import struct
import time
from collections.abc import Callable
from typing import Any

from .cuda import FULL, Cuda
from .kernels import KINDS, MASK, PATTERNS, Kind, Pattern, matrices, memory, ptx

PIECE = 1 << 30
"""Bytes of memory that are taken at once; less, where there is less."""
SPARE = 256 << 20
"""Bytes that the driver keeps, for what it has to set up while the programs run."""
UNIT = 16
NONE = (1 << 64) - 1
WAVES = 8
"""Blocks of a product for each multiprocessor."""
LAUNCH_SECONDS = 0.2
"""Launches that are waited for together should take about so long."""
SHORTEST, LONGEST = 1.0, 30.0
"""Seconds of one kind of work before the next one has its turn."""


class Planted(Exception):
    """The work did not find an error that was made on purpose, so its silence would mean nothing."""


class Device:
    """One GPU with memory and programs on it."""

    def __init__(self, cuda: Cuda, address: str) -> None:
        """Find the device at an address of the PCI bus, and take it."""
        self.cuda, self.context = cuda, ctypes.c_void_p()
        count = ctypes.c_int()
        cuda("cuDeviceGetCount", ctypes.byref(count))
        for number in range(count.value):
            self.device = ctypes.c_int()
            cuda("cuDeviceGet", ctypes.byref(self.device), number)
            place = ctypes.create_string_buffer(32)
            cuda("cuDeviceGetPCIBusId", place, 32, self.device)
            if place.value.decode().lower()[-12:] == address.lower()[-12:]:
                break
        else:
            raise OSError(-1, f"programs do not see the device at {address}")
        self.processors, major, minor = (self.attribute(number) for number in (16, 75, 76))
        self.capability = 10 * major + minor
        cuda("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.use()
        self.record = self.take(UNIT)

    def use(self) -> None:
        """Let calls that name no device mean this one."""
        self.cuda("cuCtxSetCurrent", self.context)

    def attribute(self, number: int) -> int:
        """Return a property of the device."""
        held = ctypes.c_int()
        self.cuda("cuDeviceGetAttribute", ctypes.byref(held), number, self.device)
        return held.value

    def take(self, size: int, data: bytes = b"") -> ctypes.c_uint64:
        """Take memory, and fill it."""
        pointer = ctypes.c_uint64()
        self.cuda("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        if data:
            self.cuda("cuMemcpyHtoD_v2", pointer, data, ctypes.c_size_t(size))
        return pointer

    def take_rest(self) -> list[tuple[ctypes.c_uint64, int]]:
        """Take nearly all memory that is free, and return the pieces with their sizes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.cuda("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        rest, size, found = free.value - min(SPARE, free.value // 8), PIECE, []
        while rest >= UNIT:
            size = min(size, rest) // UNIT * UNIT
            try:
                found.append((self.take(size), size))
            except OSError as error:
                if error.errno != FULL:
                    raise
                size //= 2
                if size < PIECE >> 8:
                    break
                continue
            rest -= size
        return found

    def program(self, source: str, *names: str) -> list[ctypes.c_void_p]:
        """Compile a program, and return its functions."""
        module, functions = ctypes.c_void_p(), [ctypes.c_void_p() for _ in names]
        self.cuda("cuModuleLoadData", ctypes.byref(module), source.encode() + b"\0")
        for function, name in zip(functions, names, strict=True):
            self.cuda("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return functions

    def launch(self, function: ctypes.c_void_p, blocks: int, threads: int, *values: Any) -> None:
        """Start a program."""
        given = (ctypes.c_void_p * len(values))(*(ctypes.addressof(each) for each in values))
        self.cuda("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, given, None)

    def clear(self) -> None:
        """Forget errors that were recorded."""
        self.cuda("cuMemcpyHtoD_v2", self.record, struct.pack("<IIQ", 0, 0, NONE), ctypes.c_size_t(UNIT))

    def recorded(self) -> tuple[int, int, int]:
        """Wait for all programs, and return the errors: how many, and two numbers whose meaning the program knows."""
        held = ctypes.create_string_buffer(UNIT)
        self.cuda("cuCtxSynchronize")
        self.cuda("cuMemcpyDtoH_v2", held, self.record, ctypes.c_size_t(UNIT))
        count, second, third = struct.unpack("<IIQ", held.raw)
        return count, second, third


class Products:
    """Products in one precision, over and over."""

    def __init__(self, device: Device, kind: Kind) -> None:
        """Bring program and matrices to the device; check that it finds a wrong element."""
        self.device, self.kind, self.name = device, kind, kind.name
        (self.function,) = device.program(ptx(kind), "product")
        a, b, expected = matrices(kind)
        self.matrices = [device.take(len(data), data) for data in (a, b, expected)]
        self.rounds = ctypes.c_uint32(kind.rounds)
        self.launches = 1
        planted = bytes([expected[0] ^ 1]) + expected[1:]
        self.bring(planted)
        wrong, _, _ = self.run(1)
        self.bring(expected)
        copies = device.processors * WAVES * (kind.threads // 32 if kind.tensor else 1)
        if wrong != copies:
            raise Planted(f"{kind.name}: of {copies} wrong elements it found {wrong}")

    def bring(self, expected: bytes) -> None:
        """Replace what counts as right."""
        self.device.cuda("cuMemcpyHtoD_v2", self.matrices[2], expected, ctypes.c_size_t(len(expected)))

    def run(self, launches: int) -> tuple[int, int, int]:
        """Multiply, and return the errors."""
        device = self.device
        device.clear()
        for _ in range(launches):
            device.launch(self.function, device.processors * WAVES, self.kind.threads, *self.matrices, device.record,
                          self.rounds)  # fmt: skip
        return device.recorded()

    def work(self, until: Callable[[], bool]) -> dict[str, Any]:
        """Multiply until it is time, and tell what came out."""
        wrong = done = place = 0
        began = time.monotonic()
        while True:
            start = time.monotonic()
            count, processor, _ = self.run(self.launches)
            took = time.monotonic() - start
            done += self.launches
            if count:
                wrong, place = wrong + count, processor
            if took < LAUNCH_SECONDS / 2:
                self.launches *= 2
            if until():
                break
        operations = done * self.device.processors * WAVES * self.kind.operations
        seconds = time.monotonic() - began
        return {"launches": done, "wrong": wrong, "processor": place, "processors": self.device.processors,
                "value": operations / seconds / 1e12}  # fmt: skip


class Memory:
    """Patterns in nearly all memory."""

    name = "memory"

    def __init__(self, device: Device) -> None:
        """Take the memory; check that a wrong bit is found."""
        self.device, self.patterns, self.least = device, itertools.cycle(PATTERNS), len(PATTERNS)
        self.fill, self.check = device.program(memory(), "fill", "check")
        self.pieces = device.take_rest()
        if not self.pieces:
            raise OSError(FULL, "no memory of the device is free")
        for pattern in (PATTERNS[5], next(each for each in PATTERNS if each.name == "address")):
            self.prove(pattern)

    def prove(self, pattern: Pattern) -> None:
        """Write a wrong word, and look whether exactly that is found."""
        pointer, size = self.pieces[-1]
        number = size // 4 - 3
        place = ctypes.c_uint64(pointer.value + 4 * number)
        self.device.clear()
        self.each(self.fill, pattern)
        wrong = ctypes.c_uint(pattern.word(place.value, number) ^ 0x10)
        self.device.cuda("cuMemsetD32_v2", place, wrong, ctypes.c_size_t(1))
        self.each(self.check, pattern)
        found = self.device.recorded()
        if found != (1, 0x10, place.value):
            raise Planted(f"{pattern.name}: in place of one wrong bit it found {found}")

    def each(self, function: ctypes.c_void_p, pattern: Pattern, pieces: list[tuple[Any, int]] | None = None) -> None:
        """Let a program go over the pieces."""
        device = self.device
        for pointer, size in pieces or self.pieces:
            device.launch(function, device.processors * WAVES, 256, pointer, ctypes.c_uint64(size // UNIT),
                          ctypes.c_uint32(pattern.mode), ctypes.c_uint32(pattern.seed), ctypes.c_uint32(pattern.shift),
                          device.record)  # fmt: skip

    def work(self, until: Callable[[], bool]) -> dict[str, Any]:
        """Write and compare patterns until it is time, and all of them the first time."""
        passes = wrong = bits = 0
        lowest, faults = NONE, set[str]()
        for pattern in self.patterns:
            self.device.clear()
            self.each(self.fill, pattern)
            self.each(self.check, pattern)
            count, which, address = self.device.recorded()
            passes += 1
            if count:
                wrong, bits, lowest = wrong + count, bits | which, min(lowest, address)
                faults.add(pattern.name)
            if passes >= self.least and until():
                break
        self.least = 1
        return {"passes": passes, "wrong": wrong, "bits": bits, "address": lowest if wrong else 0,
                "patterns": sorted(faults), "bytes": sum(size for _, size in self.pieces)}  # fmt: skip


class Bandwidth:
    """Copies within the memory."""

    name = "bandwidth"

    def __init__(self, memory: Memory) -> None:
        """Take pieces of the memory that is tested."""
        self.memory = memory
        if len(memory.pieces) > 1:
            (self.source, first), (self.target, second) = memory.pieces[:2]
            self.size = min(first, second)
        else:
            self.source, size = memory.pieces[0]
            self.size = size // 2 // UNIT * UNIT
            self.target = ctypes.c_uint64(self.source.value + self.size)
        self.copies = 1

    def work(self, until: Callable[[], bool]) -> dict[str, Any]:
        """Copy until it is time; each byte is read once and written once."""
        device, size, pattern = self.memory.device, ctypes.c_size_t(self.size), PATTERNS[1]
        self.memory.each(self.memory.fill, pattern, [(self.source, self.size)])
        device.recorded()
        done, began = 0, time.monotonic()
        while True:
            start = time.monotonic()
            for _ in range(self.copies):
                device.cuda("cuMemcpyDtoD_v2", self.target, self.source, size)
            device.cuda("cuCtxSynchronize")
            done += self.copies
            if time.monotonic() - start < LAUNCH_SECONDS / 2:
                self.copies *= 2
            if until():
                break
        seconds = time.monotonic() - began
        device.clear()
        self.memory.each(self.memory.check, pattern, [(self.target, self.size)])
        wrong, bits, _ = device.recorded()
        return {"copies": done, "wrong": wrong, "bits": bits, "value": 2 * self.size * done / seconds / 1e9}


def burn(library: Any, address: str, seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
    """Work one device for so long, and tell what came out, part by part; the last one says that it is done."""
    try:
        cuda = Cuda(library)
        cuda("cuInit", 0)
        device = Device(cuda, address)
        parts: list[Any] = [Products(device, kind) for kind in KINDS if kind.target <= device.capability]
        held = Memory(device)
        parts += [Bandwidth(held), held]
        turn = min(max(seconds / len(parts) / 2, SHORTEST), LONGEST)
        deadline = time.monotonic() + seconds
        for part in itertools.cycle(parts):
            began = time.monotonic()
            end = min(began + turn, deadline)
            done = part.work(lambda end=end: time.monotonic() >= end)
            tell({"part": part.name, "began": began, "ended": time.monotonic()} | done)
            if part is held and time.monotonic() >= deadline:
                break
    except Planted as fault:
        tell({"part": "error", "planted": True, "error": str(fault), "code": -1})
    except OSError as error:
        tell({"part": "error", "planted": False, "error": str(error.strerror), "code": error.errno})
    else:
        tell({"part": "end"})


def pairs(library: Any, addresses: list[str], seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
    """Copy from each device to each other one, and compare there."""
    try:
        cuda = Cuda(library)
        cuda("cuInit", 0)
        devices = [Device(cuda, address) for address in addresses]
        programs, places = [], []
        for device in devices:
            device.use()
            programs.append(device.program(memory(), "fill", "check"))
            places.append(device.take(PIECE >> 2))
        pattern, size, units = PATTERNS[3], ctypes.c_size_t(PIECE >> 2), ctypes.c_uint64((PIECE >> 2) // UNIT)
        rest = [ctypes.c_uint32(each) for each in (pattern.mode, pattern.seed, pattern.shift)]
        turn = seconds / (len(devices) * (len(devices) - 1))
        for one, other in itertools.permutations(range(len(devices)), 2):
            source, target = devices[one], devices[other]
            source.use()
            source.launch(programs[one][0], source.processors * WAVES, 256, places[one], units, *rest, source.record)
            source.recorded()
            target.use()
            cuda("cuMemsetD32_v2", places[other], ctypes.c_uint(MASK ^ 0x1234), ctypes.c_size_t(size.value // 4))
            target.recorded()
            done, began = 0, time.monotonic()
            while not done or time.monotonic() - began < turn:
                cuda("cuMemcpyPeer", places[other], target.context, places[one], source.context, size)
                target.recorded()
                done += 1
            value = size.value * done / (time.monotonic() - began) / 1e9
            target.clear()
            target.launch(programs[other][1], target.processors * WAVES, 256, places[other], units, *rest,
                          target.record)  # fmt: skip
            wrong, bits, _ = target.recorded()
            tell({"part": "copy", "from": addresses[one], "to": addresses[other], "value": value, "wrong": wrong,
                  "bits": bits})  # fmt: skip
    except OSError as error:
        tell({"part": "error", "planted": False, "error": str(error.strerror), "code": error.errno})
    else:
        tell({"part": "end"})
