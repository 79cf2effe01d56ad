"""An interpreter of the PTX that the burn-in uses, after NVIDIA's description of PTX: thread by thread, on the CPU."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

FORMS = {"b32": "<I", "u32": "<I", "s32": "<I", "f32": "<f", "f64": "<d", "u64": "<Q", "b64": "<Q"}
LINE = re.compile(r"(?:@(%\w+) )?([\w.]+)(?: (.*))?;")


def single(number: float) -> float:
    """Return the nearest 32-bit float."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def signed(word: int, bits: int = 32) -> int:
    """Return the signed number of a word."""
    return word - (1 << bits) if word >> (bits - 1) else word


def dot(a: int, b: int) -> int:
    """Return the sum of the products of four signed bytes."""
    return sum(signed(a >> at & 255, 8) * signed(b >> at & 255, 8) for at in (0, 8, 16, 24))


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "and": lambda a, b: a & b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "mul.wide": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "fma.rn": lambda a, b, c: a * b + c,
    "dp4a.s32": lambda a, b, c: c + dot(a, b),
    "shf.l.wrap": lambda a, b, c: (b << c % 32 | a >> (32 - c % 32)) if c % 32 else b,
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "cvta.to.global": lambda a: a,
    "setp.eq": lambda a, b: a == b,
    "setp.ne": lambda a, b: a != b,
    "setp.neu": lambda a, b: a != b or a != a or b != b,
    "setp.lt": lambda a, b: a < b,
    "setp.ge": lambda a, b: a >= b,
}
ATOMIC: dict[str, Callable[[int, int], int]] = {"add": lambda a, b: a + b, "or": lambda a, b: a | b, "min": min}


class Program:
    """One entry of a source, with global memory at an address."""

    def __init__(self, source: str, entry: str, base: int, memory: bytearray) -> None:
        """Read the entry."""
        self.base, self.memory = base, memory
        self.read_from: list[int] = []
        body = source[source.index(f".entry {entry}(") :]
        self.parameters = re.findall(r"\.param \.\w+ (\w+)", body[: body.index("{")])
        self.lines: list[tuple[str, str, list[str], Callable[..., Any] | None, int]] = []
        self.labels: dict[str, int] = {}
        self.places: dict[str, int] = {}
        self.size = 0
        for line in map(str.strip, body[body.index("{") + 1 : body.index("\n}")].splitlines()):
            if shared := re.fullmatch(r"\.shared \.align 16 \.b8 (\w+)\[(\d+)\];", line):
                self.places[shared[1]], self.size = self.size, self.size + int(shared[2])
            elif line.endswith(":"):
                self.labels[line[:-1]] = len(self.lines)
            elif line and not line.startswith("."):
                found = LINE.fullmatch(line)
                assert found, line
                words = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", found[3] or "")
                self.lines.append((found[1] or "", found[2], words, *self.decoded(found[2], words)))

    @staticmethod
    def decoded(name: str, words: list[str]) -> tuple[Callable[..., Any] | None, int]:
        """Return what computes a line's result, and the bits that are kept of it: 0 for a float, 1 for a predicate."""
        operation, _, kind = name.rpartition(".")
        if operation.startswith("cvt."):  # of two types, the first is that of the result
            operation, kind = "cvt", operation[4:]
        if operation not in ARITHMETIC or words[0].startswith("{"):
            return None, 0
        compute = ARITHMETIC[operation]
        if operation.startswith("setp"):
            return compute, 1
        if kind.startswith("f"):
            return (lambda *given: single(compute(*given))) if kind == "f32" else compute, 0
        return compute, (1 << 64 if kind.endswith("64") or operation == "mul.wide" else 1 << 32) - 1

    def run(self, blocks: int, threads: int, *given: int) -> None:
        """Run all threads of all blocks; those of a block wait for each other at barriers."""
        for block in range(blocks):
            shared = bytearray(self.size)
            special = {"%ctaid.x": block, "%ntid.x": threads, "%nctaid.x": blocks, "%smid": 7}
            running = [
                self.thread(shared, special | {"%tid.x": number}, dict(zip(self.parameters, given, strict=True)))
                for number in range(threads)
            ]
            while running:
                running = [each for each in running if next(each, None)]

    def thread(self, shared: bytearray, known: dict[str, Any], given: dict[str, int]) -> Iterator[bool]:
        """Run one thread; yield at each barrier."""

        def value(word: str, kind: str) -> Any:
            if word in self.places:
                return self.places[word]
            if word[:2] in ("0f", "0d"):
                return struct.unpack(">f" if word[1] == "f" else ">d", bytes.fromhex(word[2:]))[0]
            return int(word) & ((1 << 64 if kind.endswith("64") else 1 << 32) - 1)

        def place(word: str) -> int:
            name, _, more = word[1:-1].partition("+")
            return int(known[name]) + int(more or 0)

        at = 0
        while at < len(self.lines):
            guard, name, words, compute, mask = self.lines[at]
            at += 1
            if guard and not known[guard]:
                continue
            if compute:
                result = compute(*(known[word] if word in known else value(word, name) for word in words[1:]))
                known[words[0]] = result & mask if mask > 1 else result
                continue
            operation, _, kind = name.rpartition(".")
            if name == "bra":
                at = self.labels[words[0]]
            elif name == "ret":
                return
            elif name == "bar.sync":
                yield True
            elif operation == "ld.param":
                known[words[0]] = given[words[1][1:-1]]
            elif operation.startswith(("ld.", "st.")):
                where = place(words[1] if name[0] == "l" else words[0])
                held, start = (shared, where) if ".shared" in name else (self.memory, where - self.base)
                registers = re.findall(r"%\w+", words[0] if name[0] == "l" else words[1])
                assert len(registers) == (int(found[1]) if (found := re.search(r"\.v(\d)", name)) else 1)
                size = struct.calcsize(FORMS[kind])
                assert start % (size * len(registers)) == 0
                assert 0 <= start <= len(held) - size * len(registers)
                if held is self.memory and name[0] == "l":
                    self.read_from.append(where)
                for step, register in enumerate(registers):
                    if name[0] == "l":
                        (known[register],) = struct.unpack_from(FORMS[kind], held, start + step * size)
                    else:
                        struct.pack_into(FORMS[kind], held, start + step * size, known[register])
            elif operation.startswith("atom.global."):
                start = place(words[1]) - self.base
                (old,) = struct.unpack_from(FORMS[kind], self.memory, start)
                more = known[words[2]] if words[2] in known else value(words[2], kind)
                struct.pack_into(FORMS[kind], self.memory, start, ATOMIC[operation[12:]](old, more))
                known[words[0]] = old
            else:
                assert (name, words[0][0]) == ("mov.b64", "{")
                low, high = re.findall(r"%\w+", words[0])
                known[low], known[high] = known[words[1]] & 0xFFFFFFFF, known[words[1]] >> 32
