"""Products of matrices on all devices at once, in integers and in floats, with every element compared."""

from __future__ import annotations

import array
import ctypes
import time
from collections.abc import Callable
from typing import Any

from .cuda import Cuda

SIDE = 1024
TILE = 16
PERIOD = 16
"""Elements of the matrices repeat after so many rows and columns, so that the right product is quickly known."""
ERASED = 0x7FC00000  # not a number as a float, and no element of the product as an integer

# One thread for each element of the product. Any driver since 2017 compiles it for any GPU since Maxwell.
KERNEL = """
.visible .entry {name}(.param .u64 left, .param .u64 right, .param .u64 product)
{{
    .reg .pred %more;
    .reg .b32 %row, %column, %thread, %rest;
    .reg .b64 %a, %b, %c, %offset;
    .reg {register} %x, %y, %sum;
    mov.u32 %column, %ctaid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %column, %column, {tile}, %thread;
    mov.u32 %row, %ctaid.y;
    mov.u32 %thread, %tid.y;
    mad.lo.u32 %row, %row, {tile}, %thread;
    ld.param.u64 %a, [left];
    ld.param.u64 %b, [right];
    ld.param.u64 %c, [product];
    cvta.to.global.u64 %a, %a;
    cvta.to.global.u64 %b, %b;
    cvta.to.global.u64 %c, %c;
    mul.wide.u32 %offset, %row, {line};
    add.u64 %a, %a, %offset;
    add.u64 %c, %c, %offset;
    mul.wide.u32 %offset, %column, 4;
    add.u64 %b, %b, %offset;
    add.u64 %c, %c, %offset;
    mov.{type} %sum, {zero};
    mov.u32 %rest, {side};
again:
    ld.global.{type} %x, [%a];
    ld.global.{type} %y, [%b];
    {multiply_add} %sum, %x, %y, %sum;
    add.u64 %a, %a, 4;
    add.u64 %b, %b, {line};
    sub.u32 %rest, %rest, 1;
    setp.ne.u32 %more, %rest, 0;
    @%more bra again;
    st.global.{type} [%c], %sum;
    ret;
}}
"""
KINDS = {
    "integers": {"register": ".b32", "type": "s32", "zero": "0", "multiply_add": "mad.lo.s32"},
    "floats": {"register": ".f32", "type": "f32", "zero": "0f00000000", "multiply_add": "fma.rn.f32"},
}
CODES = {"integers": "i", "floats": "f"}
PTX = ".version 6.0\n.target sm_50\n.address_size 64\n" + "".join(
    KERNEL.format(name=name, side=SIDE, line=4 * SIDE, tile=TILE, **words) for name, words in KINDS.items()
)
SIZE = ctypes.c_size_t(4 * SIDE * SIDE)
LAUNCHES = 10
WARM_SECONDS = 1.5
"""Load before the readings are taken: a link and the clocks need part of a second to leave their idle state."""
LOAD_SECONDS = 40.0
"""Nothing of the load takes that long."""


def factors() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Return the repeating parts of the two matrices and of their product, which floats hold exactly."""
    left = [[(3 * row + 5 * column + row * column) % 13 - 6 for column in range(PERIOD)] for row in range(PERIOD)]
    right = [[(7 * row + 2 * column + row * row) % 11 - 5 for column in range(PERIOD)] for row in range(PERIOD)]
    product = [
        [sum(left[i][k] * right[k][j] for k in range(PERIOD)) * (SIDE // PERIOD) for j in range(PERIOD)]
        for i in range(PERIOD)
    ]
    return left, right, product


def whole(part: list[list[int]], code: str) -> bytes:
    """Return the whole matrix of a repeating part, as the GPU stores it."""
    lines = b"".join(array.array(code, [float(x) if code == "f" else x for x in line]).tobytes() * (SIDE // PERIOD)
                     for line in part)  # fmt: skip
    return lines * (SIDE // PERIOD)


class Worker:
    """One GPU with the program and the matrices on it."""

    def __init__(self, cuda: Cuda, number: int) -> None:
        """Load the program, and make room for the matrices."""
        self.cuda, self.wrong, self.rounds = cuda, dict[str, int](), 0
        device, self.context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        cuda("cuDeviceGet", ctypes.byref(device), number)
        name = ctypes.create_string_buffer(100)
        cuda("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        cuda("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        cuda("cuCtxSetCurrent", self.context)
        cuda("cuModuleLoadData", ctypes.byref(module), PTX.encode() + b"\0")
        self.functions = {kind: ctypes.c_void_p() for kind in KINDS}
        for kind, function in self.functions.items():
            cuda("cuModuleGetFunction", ctypes.byref(function), module, kind.encode())
        self.pointers = [ctypes.c_uint64() for _ in range(3)]
        for pointer in self.pointers:
            cuda("cuMemAlloc_v2", ctypes.byref(pointer), SIZE)

    def begin(self, kind: str, left: bytes, right: bytes) -> None:
        """Copy the matrices to the GPU, erase the last product, and let it multiply a few times."""
        cuda, pointers = self.cuda, self.pointers
        cuda("cuCtxSetCurrent", self.context)
        cuda("cuMemcpyHtoD_v2", pointers[0], left, SIZE)
        cuda("cuMemcpyHtoD_v2", pointers[1], right, SIZE)
        cuda("cuMemsetD32_v2", pointers[2], ctypes.c_uint(ERASED), ctypes.c_size_t(SIDE * SIDE))
        given = (ctypes.c_void_p * 3)(*(ctypes.addressof(pointer) for pointer in pointers))
        blocks = SIDE // TILE
        for _ in range(LAUNCHES):
            cuda("cuLaunchKernel", self.functions[kind], blocks, blocks, 1, TILE, TILE, 1, 0, None, given, None)

    def end(self, kind: str, product: bytes) -> None:
        """Wait for the product, and count the elements that are wrong."""
        result = ctypes.create_string_buffer(4 * SIDE * SIDE)
        self.cuda("cuCtxSetCurrent", self.context)
        self.cuda("cuCtxSynchronize")
        self.cuda("cuMemcpyDtoH_v2", result, self.pointers[2], SIZE)
        self.rounds += 1
        if result.raw != product:
            pairs = zip(memoryview(result.raw).cast("I"), memoryview(product).cast("I"), strict=True)
            self.wrong[kind] = self.wrong.get(kind, 0) + sum(got != right for got, right in pairs)


def load(library: Any, warm: Callable[[], None], over: Callable[[], bool]) -> dict[str, Any]:
    """Let all GPUs work at once until it is over, and report what they computed; call `warm` after a while."""
    cuda, count = Cuda(library), ctypes.c_int()
    matrices = {kind: [whole(part, code) for part in factors()] for kind, code in CODES.items()}
    workers: list[Worker] = []
    try:
        cuda("cuInit", 0)
        cuda("cuDeviceGetCount", ctypes.byref(count))
        workers += [Worker(cuda, number) for number in range(count.value)]
        began, told = time.monotonic(), False
        while workers and not over() and time.monotonic() - began < LOAD_SECONDS:
            for kind, (left, right, product) in matrices.items():
                for worker in workers:
                    worker.begin(kind, left, right)
                for worker in workers:
                    worker.end(kind, product)
            if not told and time.monotonic() - began > WARM_SECONDS:
                told = True
                warm()
    except OSError as error:
        return {"error": str(error.strerror), "code": error.errno, "devices": []}
    return {
        "error": "",
        "code": 0,
        "devices": [{"name": each.name, "rounds": each.rounds, "wrong": each.wrong} for each in workers],
    }
