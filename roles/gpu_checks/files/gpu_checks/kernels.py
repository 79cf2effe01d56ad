"""Programs for the device in PTX, and the numbers that they work on.

Each product is of matrices that stay on the multiprocessor, so that the arithmetic units set the pace, and is added up
over so many rounds that a launch takes milliseconds. All numbers are chosen so that the sum is exact. The device itself
compares every element with the right one, and counts those that differ.
"""

from __future__ import annotations

import array
import itertools
import struct
from dataclasses import dataclass

HEAD = ".version {version}\n.target sm_{target}\n.address_size 64\n"
MASK = 0xFFFFFFFF
MIX = 0x9E3779B1
DEPTH = 16
"""Rows of the matrices that a multiprocessor holds at once."""
SIDE = 16
"""Threads of a block in each direction."""


@dataclass(frozen=True)
class Kind:
    """One precision: what multiplies, and how fine its numbers are."""

    name: str
    target: int  # compute capability from which devices can
    form: str  # of array and struct
    left: int  # factors of the small numbers
    right: int
    rounds: int
    version: str = "6.0"
    register: str = ""
    type: str = ""
    load: str = ""
    multiply_add: str = ""
    zero: str = "0"
    differ: str = "ne"
    packed: int = 1  # numbers in one word
    tensor: bool = False

    @property
    def size(self) -> int:
        """Bytes of an element of the product."""
        return struct.calcsize(self.form)

    @property
    def tile(self) -> int:
        """Elements that a thread has in each direction."""
        return 8 if self.size == 4 else 4

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and depth of the product of a round."""
        return (32, 64, DEPTH) if self.tensor else (SIDE * self.tile, SIDE * self.tile, DEPTH * self.packed)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 128 if self.tensor else SIDE * SIDE

    @property
    def operations(self) -> int:
        """Multiplications and additions of a block in one launch."""
        rows, columns, depth = self.shape
        return 2 * rows * columns * depth * self.rounds * (self.threads // 32 if self.tensor else 1)


WORD, SINGLE, DOUBLE = (".b32", "s32", "b32"), (".f32", "f32", "f32"), (".f64", "f64", "f64")
KINDS = (
    Kind("int32", 50, "I", 0x01234567, 0x089ABCDF, 1024, "6.0", *WORD, "mad.lo.s32"),
    Kind("int8", 61, "i", 9, 11, 1024, "6.0", *WORD, "dp4a.s32.s32", packed=4),
    Kind("fp32", 50, "f", 1, 1, 1024, "6.0", *SINGLE, "fma.rn.f32", "0f00000000", "neu"),
    Kind("fp64", 50, "d", 4099, 4093, 512, "6.0", *DOUBLE, "fma.rn.f64", "0d0000000000000000", "neu"),
    Kind("fp16 tensor", 70, "f", 1, 1, 1024, "6.3", ".f32", "f32", "f16", "f32.f32", "0f00000000", "neu", tensor=True),
    Kind("int8 tensor", 72, "i", 9, 11, 1024, "6.3", ".b32", "s32", "s8", "s32.s8.s8.s32", tensor=True),
)


def left(row: int, inner: int) -> int:
    """Return a small element of the left matrix."""
    return (3 * row + 5 * inner + row * inner) % 13 - 6


def right(inner: int, column: int) -> int:
    """Return a small element of the right matrix."""
    return (7 * inner + 2 * column + inner * inner) % 11 - 5


def encoded(kind: Kind, numbers: list[int]) -> bytes:
    """Return elements of the product as the device stores them."""
    if kind.form in "fd":
        return array.array(kind.form, map(float, numbers)).tobytes()
    return array.array("I", [number & MASK for number in numbers]).tobytes()


def matrices(kind: Kind) -> tuple[bytes, bytes, bytes]:
    """Return both matrices and the right product, as the device stores them."""
    rows, columns, depth = kind.shape
    a = [[left(row, inner) * kind.left for inner in range(depth)] for row in range(rows)]
    b = [[right(inner, column) * kind.right for inner in range(depth)] for column in range(columns)]
    # Rows repeat: the small numbers go by remainders of 13 and 11.
    known: dict[tuple[int, int], int] = {}
    for row, column in itertools.product(range(min(rows, 13)), range(min(columns, 11))):
        known[row, column] = sum(x * y for x, y in zip(a[row], b[column], strict=True)) * kind.rounds
    right_one = encoded(kind, [known[row % 13, column % 11] for row in range(rows) for column in range(columns)])
    if kind.tensor:
        form = "e" if kind.load == "f16" else "b"
        one, other = (struct.pack(f"<{len(m) * depth}{form}", *itertools.chain(*m)) for m in (a, b))
        return one, other, right_one
    if kind.packed == 4:
        a, b = ([[int.from_bytes(struct.pack("<4b", *line[at : at + 4]), "little") for at in range(0, depth, 4)]
                 for line in matrix] for matrix in (a, b))  # fmt: skip
    # Line after line of the depth.
    one, other = (encoded(kind, [line[inner] for inner in range(DEPTH) for line in matrix]) for matrix in (a, b))
    return one, other, right_one


def ptx(kind: Kind) -> str:
    """Return the program of a precision."""
    return HEAD.format(version=kind.version, target=kind.target) + (tensor(kind) if kind.tensor else scalar(kind))


PARAMETERS = ".param .u64 left, .param .u64 right, .param .u64 expected, .param .u64 record, .param .u32 rounds"
ADDRESSES = "".join(
    f"    ld.param.u64 %{name}, [{name}];\n    cvta.to.global.u64 %{name}, %{name};\n"
    for name in ("left", "right", "expected", "record")
)
# How many elements were wrong, and the multiprocessor that said so last.
REPORT = """\
    setp.eq.u32 %p, %wrong, 0;
    @%p bra done;
    atom.global.add.u32 %old, [%record], %wrong;
    mov.u32 %old, %smid;
    st.global.u32 [%record+4], %old;
done:
    ret;
"""


def scalar(kind: Kind) -> str:
    """Return the program for units that multiply numbers: a thread has `tile` rows and columns of the product."""
    per, tile, size = 16 // kind.size, kind.tile, kind.size
    line = SIDE * tile * size  # bytes
    held = DEPTH * line
    places = [(group * SIDE * per, step) for group in range(tile // per) for step in range(per)]
    vector = f"v{per}.{kind.load}"

    def load(register: str, base: str, inner: int) -> list[str]:
        return [
            f"ld.shared.{vector} {{{', '.join(f'%{register}{group * per + step}' for step in range(per))}}}, "
            f"[%{base}+{inner * line + group * SIDE * 16}];"
            for group in range(tile // per)
        ]

    work = []
    for inner in range(DEPTH):
        work += load("x", "own_row", inner) + load("y", "own_column", inner)
        for i, j in itertools.product(range(tile), range(tile)):
            work.append(f"{kind.multiply_add} %s{i * tile + j}, %x{i}, %y{j}, %s{i * tile + j};")
    compare = []
    for (i, (row, row_step)), (j, (column, column_step)) in itertools.product(enumerate(places), enumerate(places)):
        at = ((row + row_step) * SIDE * tile + column + column_step) * size
        compare += [
            f"ld.global.{kind.type} %x0, [%expected+{at}];",
            f"setp.{kind.differ}.{kind.type} %p, %s{i * tile + j}, %x0;",
            "@%p add.u32 %wrong, %wrong, 1;",
        ]
    clear = [f"mov.{kind.type} %s{i}, {kind.zero};" for i in range(tile * tile)]
    return f"""
.visible .entry product({PARAMETERS})
.maxntid {SIDE * SIDE}, 1, 1
.minnctapersm 2
{{
    .reg .pred %p;
    .reg .b32 %thread, %row, %column, %own_row, %own_column, %at, %rest, %wrong, %old, %word;
    .reg .b64 %left, %right, %expected, %record, %offset, %from;
    .reg {kind.register} %x<{tile}>, %y<{tile}>, %s<{tile * tile}>;
    .shared .align 16 .b8 rows[{held}];
    .shared .align 16 .b8 columns[{held}];
{ADDRESSES}    ld.param.u32 %rest, [rounds];
    mov.u32 %thread, %tid.x;
    shr.u32 %row, %thread, 4;
    and.b32 %column, %thread, 15;
    shl.b32 %at, %thread, 2;
copy:
    cvt.u64.u32 %offset, %at;
    add.u64 %from, %left, %offset;
    ld.global.b32 %word, [%from];
    mov.u32 %old, rows;
    add.u32 %old, %old, %at;
    st.shared.b32 [%old], %word;
    add.u64 %from, %right, %offset;
    ld.global.b32 %word, [%from];
    mov.u32 %old, columns;
    add.u32 %old, %old, %at;
    st.shared.b32 [%old], %word;
    add.u32 %at, %at, {4 * SIDE * SIDE};
    setp.lt.u32 %p, %at, {held};
    @%p bra copy;
    bar.sync 0;
    shl.b32 %at, %row, 4;
    mov.u32 %own_row, rows;
    add.u32 %own_row, %own_row, %at;
    shl.b32 %at, %column, 4;
    mov.u32 %own_column, columns;
    add.u32 %own_column, %own_column, %at;
{text(clear)}again:
{text(work)}    sub.u32 %rest, %rest, 1;
    setp.ne.u32 %p, %rest, 0;
    @%p bra again;
    mul.wide.u32 %offset, %row, {per * line};
    add.u64 %expected, %expected, %offset;
    mul.wide.u32 %offset, %column, 16;
    add.u64 %expected, %expected, %offset;
    mov.u32 %wrong, 0;
{text(compare)}{REPORT}}}
"""


def tensor(kind: Kind) -> str:
    """Return the program for tensor cores: each warp has 2 by 4 parts of the product, of 16 by 16 elements."""
    rows, columns, depth = kind.shape
    wide, size = (8, 2) if kind.load == "f16" else (2, 1)
    down, across = rows // 16, columns // 16
    shape = "m16n16k16"

    def names(register: str, number: int, count: int) -> str:
        return f"{{{', '.join(f'%{register}{number * count + i}' for i in range(count))}}}"

    begin = [
        f"wmma.load.a.sync.aligned.row.{shape}.global.{kind.load} {names('a', i, wide)}, "
        f"[%left+{i * 16 * depth * size}], {depth};"
        for i in range(down)
    ]
    begin += [
        f"wmma.load.b.sync.aligned.col.{shape}.global.{kind.load} {names('b', j, wide)}, "
        f"[%right+{j * 16 * depth * size}], {depth};"
        for j in range(across)
    ]
    begin += [f"mov.{kind.type} %s{i}, {kind.zero};" for i in range(8 * down * across)]
    work, compare = [], []
    for i, j in itertools.product(range(down), range(across)):
        sums = names("s", i * across + j, 8)
        work.append(
            f"wmma.mma.sync.aligned.row.col.{shape}.{kind.multiply_add} "
            f"{sums}, {names('a', i, wide)}, {names('b', j, wide)}, {sums};"
        )
        compare.append(
            f"wmma.load.c.sync.aligned.row.{shape}.global.{kind.type} {names('e', 0, 8)}, "
            f"[%expected+{(i * 16 * columns + j * 16) * 4}], {columns};"
        )
        for k in range(8):
            compare.append(f"setp.{kind.differ}.{kind.type} %p, %s{(i * across + j) * 8 + k}, %e{k};")
            compare.append("@%p add.u32 %wrong, %wrong, 1;")
    return f"""
.visible .entry product({PARAMETERS})
.maxntid 128, 1, 1
{{
    .reg .pred %p;
    .reg .b32 %rest, %wrong, %old;
    .reg .b64 %left, %right, %expected, %record;
    .reg .b32 %a<{wide * down}>, %b<{wide * across}>;
    .reg {kind.register} %s<{8 * down * across}>, %e<8>;
{ADDRESSES}    ld.param.u32 %rest, [rounds];
{text(begin)}again:
{text(work)}    sub.u32 %rest, %rest, 1;
    setp.ne.u32 %p, %rest, 0;
    @%p bra again;
    mov.u32 %wrong, 0;
{text(compare)}{REPORT}}}
"""


def text(lines: list[str]) -> str:
    """Return lines of a program."""
    return "".join(f"    {line}\n" for line in lines)


# -- Memory

TURN, ADDRESS = 0, 1
"""A word is the seed, turned by as many bits as its number, or its own address."""


@dataclass(frozen=True)
class Pattern:
    """What all words of the memory are."""

    name: str
    mode: int
    seed: int
    shift: int = 0

    def word(self, address: int, number: int) -> int:
        """Return the right word at an address, the so-and-so-manyth of its piece of memory."""
        if self.mode == TURN:
            by = (number + self.shift) % 32
            return (self.seed << by | self.seed >> (32 - by)) & MASK
        place = address >> 2
        return ((place & MASK) + (place >> 32) * MIX & MASK) ^ self.seed


PATTERNS = (
    *(Pattern("walking one", TURN, 1, shift) for shift in range(32)),
    *(Pattern("walking zero", TURN, MASK - 1, shift) for shift in range(32)),
    Pattern("address", ADDRESS, 0),
    Pattern("inverse address", ADDRESS, MASK),
    Pattern("all zeros", TURN, 0),
    Pattern("all ones", TURN, MASK),
    Pattern("every other bit", TURN, 0x55555555, 0),
    Pattern("every other bit", TURN, 0x55555555, 1),
)


def memory() -> str:
    """Return the programs that write a pattern and compare it; a thread has 16 bytes at a time."""
    words = "".join(
        f"""
    add.u32 %turn, %first, {step};
    shf.l.wrap.b32 %w{step}, %seed, %seed, %turn;
    add.u64 %place, %word_place, {step};
    mov.b64 {{%low, %high}}, %place;
    mad.lo.u32 %low, %high, {MIX - (1 << 32)}, %low;
    xor.b32 %low, %low, %seed;
    @%by_address mov.u32 %w{step}, %low;"""
        for step in range(4)
    )
    compare = "".join(
        f"""
    xor.b32 %low, %w{step}, %r{step};
    setp.eq.u32 %p, %low, 0;
    @%p bra right{step};
    atom.global.add.u32 %high, [%record], 1;
    atom.global.or.b32 %high, [%record+4], %low;
    add.u64 %offset, %at, {4 * step};
    atom.global.min.u64 %offset, [%record+8], %offset;
right{step}:"""
        for step in range(4)
    )
    write = "\n    st.global.v4.b32 [%at], {%w0, %w1, %w2, %w3};"
    read = "\n    ld.global.cv.b32 %r0, [%at];" + "".join(
        f"\n    ld.global.cv.b32 %r{step}, [%at+{4 * step}];" for step in range(1, 4)
    )
    parameters = ".param .u64 begin, .param .u64 units, .param .u32 mode, .param .u32 seed, .param .u32 shift"
    programs = []
    for name, work in (("fill", write), ("check", read + compare)):
        programs.append(f"""
.visible .entry {name}({parameters}, .param .u64 record)
{{
    .reg .pred %p, %by_address;
    .reg .b32 %mode, %seed, %shift, %first, %turn, %low, %high, %w<4>, %r<4>;
    .reg .b64 %begin, %units, %record, %unit, %step, %at, %offset, %word_place, %place;
    ld.param.u64 %begin, [begin];
    ld.param.u64 %units, [units];
    ld.param.u32 %mode, [mode];
    ld.param.u32 %seed, [seed];
    ld.param.u32 %shift, [shift];
    ld.param.u64 %record, [record];
    cvta.to.global.u64 %record, %record;
    setp.eq.u32 %by_address, %mode, {ADDRESS};
    mov.u32 %low, %ctaid.x;
    mov.u32 %high, %ntid.x;
    mul.wide.u32 %unit, %low, %high;
    mov.u32 %low, %tid.x;
    cvt.u64.u32 %offset, %low;
    add.u64 %unit, %unit, %offset;
    mov.u32 %low, %nctaid.x;
    mul.wide.u32 %step, %low, %high;
again:
    setp.ge.u64 %p, %unit, %units;
    @%p bra done;
    shl.b64 %offset, %unit, 4;
    add.u64 %at, %begin, %offset;
    shr.u64 %word_place, %at, 2;
    cvta.to.global.u64 %at, %at;
    shl.b64 %offset, %unit, 2;
    cvt.u32.u64 %first, %offset;
    add.u32 %first, %first, %shift;{words}{work}
    add.u64 %unit, %unit, %step;
    bra again;
done:
    ret;
}}
""")
    return HEAD.format(version="6.0", target=50) + "".join(programs)
