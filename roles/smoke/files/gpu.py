"""What a GPU host has to pass: its devices, their driver, and that programs and containers can compute on them.

Role smoke appends a call of `main` to this file and pipes it into Python on a host, as root. Everything that it learns
about the host goes through `Host`, so that tests can put readings recorded on real hardware in its place. The work for
the load and the computation goes to the driver's own library, which compiles the program below: neither a compiler nor
CUDA has to be installed. A failed check says in its last sentence what mends it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "smoke-result "
PLACE = "metalworks-smoke-gpu"  # name of the container and the image that the check makes


class NotApplicable(Exception):
    """There is nothing to check; the text says why."""


class Fault(Exception):
    """What is wrong, and the sentence that says what mends it."""

    def __init__(self, wrong: str, mend: str) -> None:
        """Keep both as one text."""
        super().__init__(f"{wrong}. {mend}.")


# -- A program for the GPU: the product of two matrices, in integers and in floats

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


class Cuda:
    """The driver's library, whose functions return an error number."""

    def __init__(self, library: Any) -> None:
        """Take the loaded library."""
        self.library = library

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function; raise OSError with the error's name if it fails."""
        if not (code := getattr(self.library, name)(*arguments)):
            return
        word = ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(word))
        raise OSError(code, f"{name}: {word.value.decode() if word.value else code}")


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


# -- The host: the edge where tests put recorded readings

COUNT = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
print("error" if code else "count", code or count.value)
"""
TORCH = """
import torch
torch.backends.cuda.matmul.allow_tf32 = False
if not torch.cuda.is_available():
    raise SystemExit(f"PyTorch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU")
for number in range(torch.cuda.device_count()):
    x = torch.arange(256 * 256, device=f"cuda:{number}").reshape(256, 256) % 7
    right = (x.cpu().double() @ x.cpu().double()).float()
    if not torch.equal((x.float() @ x.float()).cpu(), right):
        raise SystemExit(f"PyTorch {torch.__version__} multiplies wrongly on GPU {number}")
print(f"PyTorch {torch.__version__} computes on {torch.cuda.device_count()}")
"""


class Host:
    """The host as it is."""

    library = "libcuda.so.1"

    def run(self, *command: str, seconds: float = 30, text: str | None = None) -> tuple[int, str]:
        """Return a command's exit status and output, 127 if it is missing, 124 if it does not end.

        A program that waits for a device which is gone cannot even be killed, so it is left alone then.
        """
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            return 127, f"{command[0]}: {error.strerror}"
        try:
            out, _ = process.communicate(text, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return 124, f"{' '.join(command[:2])} does not answer within {seconds:.0f} s"
        return process.returncode, out

    def read(self, path: str) -> str:
        """Return a file's text; empty if it is missing."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return ""

    def container(self) -> bool:
        """Tell whether this host is a container, whose devices are those of the machine."""
        return any(map(os.path.exists, ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")))

    def devices(self) -> list[str]:
        """Return the PCI addresses of NVIDIA's display and compute devices, as module nvidia_facts finds them."""
        folders = sorted(Path("/sys/bus/pci/devices").glob("*"))
        own = [each for each in folders if self.read(f"{each}/vendor").strip() == "0x10de"]
        return [each.name for each in own if self.read(f"{each}/class").startswith("0x03")]

    def environments(self, home: str) -> list[str]:
        """Return the interpreters of flows' environments with PyTorch, those that were built last first."""
        place = "environments/*/lib/python3*/site-packages/torch/version.py"
        found = [*Path(home).glob(place), *Path(home).glob(f"*/{place}")]
        newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        return [str(path.parents[4] / "bin/python") for path in newest]

    def loaded(self) -> tuple[str, dict[str, Any]]:
        """Return the readings of nvidia-smi while all GPUs work, and what they computed.

        The work is done by a child, which may crash or hang where this process must not.
        """
        reports, reporting = os.pipe()
        running, ending = os.pipe()
        child = os.fork()
        if not child:
            self.child(reports, reporting, running, ending)
        for number in (reporting, running):
            os.close(number)
        text = reading = ""
        deadline = time.monotonic() + LOAD_SECONDS + 5
        try:
            while time.monotonic() < deadline:
                if not select.select([reports], [], [], 1)[0]:
                    continue
                if not (part := os.read(reports, 65536)):
                    break
                text += part.decode()
                if text.startswith("warm\n") and not reading:
                    reading = self.run("nvidia-smi", "-q", "-x")[1]
                    os.close(ending)
                    ending = -1
        finally:
            if ending >= 0:
                os.close(ending)
            os.close(reports)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
        last = text.splitlines()[-1] if text.endswith("}\n") else ""
        if not last:
            return reading, {"error": "the computation crashed or did not end", "code": -1, "devices": []}
        return reading, json.loads(last)

    def child(self, reports: int, reporting: int, running: int, ending: int) -> None:
        """Work until `ending` is closed, and write what was computed to `reporting`."""
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(reports)
            os.close(ending)
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_CACHE_DISABLE": "1"}  # no files in ~/.nv
            try:
                library = ctypes.CDLL(self.library)
            except OSError as error:
                result: dict[str, Any] = {"error": str(error), "code": -1, "devices": []}
            else:
                result = load(library, lambda: write_all(reporting, b"warm\n"),
                              lambda: bool(select.select([running], [], [], 0)[0]))  # fmt: skip
            write_all(reporting, json.dumps(result).encode() + b"\n")
            status = 0
        finally:
            os._exit(status)


def write_all(number: int, data: bytes) -> None:
    """Write all of it to a file descriptor."""
    while data:
        data = data[os.write(number, data) :]


# -- Readings


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


# Packages that have the driver's own version, of NVIDIA, Debian and Ubuntu.
DRIVER = re.compile(
    r"(libcuda1|libnvidia-(compute|cfg1)(-\d+)?(-server)?|nvidia-(driver-cuda|smi|utils-\d+(-server)?)"
    r"|nvidia-((open-)?kernel(-open)?-dkms|dkms(-\d+)?(-server)?(-open)?))$"
)
PLAYBOOK = "run playbooks/gpu.yml on the host"


# -- Checks


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


def check_memory(seen: Seen) -> str:
    """No uncorrected errors since the driver was loaded, and no repair that waits or failed."""
    replace = "Have the device replaced"
    reset = "Reset the device or reboot, so that the driver takes spare memory for the bad one"
    modes, notes = set(), []
    for gpu in seen.gpus:
        element = gpu.element
        modes.add(value(element, "ecc_mode/current_ecc") or "none")
        for path, name in (
            ("remapped_rows/remapped_row_failure", "could not remap a bad row"),
            ("ecc_errors/aggregate/sram_threshold_exceeded", "has had too many errors in its SRAM"),
        ):
            if value(element, path) == "Yes":
                raise Fault(f"{gpu.name} {name}", replace)
        for path in (
            "remapped_rows/remapped_row_pending",
            "retired_pages/pending_retirement",
            "retired_pages/pending_blacklist",
        ):
            if value(element, path) == "Yes":
                raise Fault(f"{gpu.name} has a bad part of its memory that waits to be replaced by a spare one", reset)
        if count := uncorrected(element.find("ecc_errors/volatile")):
            raise Fault(
                f"{gpu.name} has had {count} uncorrected memory errors since the driver was loaded",
                "Reset the device or reboot; have it replaced if they come again",
            )
        if count := uncorrected(element.find("ecc_errors/aggregate")):
            notes.append(f"{gpu.name} has had {count} uncorrected errors in its life")
    words = {"Enabled": "ECC on", "Disabled": "ECC off", "none": "no ECC"}
    return "; ".join([", ".join(sorted(words.get(mode, mode) for mode in modes)) + ", nothing to repair", *notes])


def uncorrected(counts: ElementTree.Element | None) -> int:
    """Return the uncorrected errors of one kind of counter, in the form of any generation."""
    if counts is None:
        return 0
    older = number(counts, "double_bit/total")
    if older is not None:
        return older
    names = [each.tag for each in counts if "uncorrectable" in each.tag]
    return sum(number(counts, name) or 0 for name in names)


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


def reasons(gpu: Gpu) -> set[str]:
    """Return why the device does not run at its highest clock; later drivers name the elements otherwise."""
    found = gpu.element.find("clocks_event_reasons")
    found = gpu.element.find("clocks_throttle_reasons") if found is None else found
    names = [] if found is None else [each.tag for each in found if (each.text or "").strip() == "Active"]
    return {re.sub(r"^clocks_(event|throttle)_reasons?_", "", name) for name in names}


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


def check_persistence(seen: Seen) -> str:
    """The driver keeps each device initialised."""
    off = [gpu.name for gpu in seen.gpus if value(gpu.element, "persistence_mode") != "Enabled"]
    if off:
        raise Fault(
            f"persistence mode is off for {', '.join(off)}, so that each first use waits",
            "Run `systemctl restart nvidia-persistenced`; `journalctl -u nvidia-persistenced` says why if it stays off",
        )
    return "on"


FULL = 2  # CUDA_ERROR_OUT_OF_MEMORY
IN_USE = 46  # CUDA_ERROR_DEVICE_UNAVAILABLE
NOT_READY = 802  # CUDA_ERROR_SYSTEM_NOT_READY


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


# -- Containers

KEEP_SECONDS = "300"


def libraries(host: Host, *programs: str) -> list[str]:
    """Return the system's libraries that programs need; those of the driver come with the device."""
    found = set()
    for program in programs:
        found |= set(re.findall(r"(/\S+) \(0x", host.run("ldd", program)[1]))
    return sorted(path for path in found if "nvidia" not in path)


def image(host: Host) -> bytes:
    """Return the files of a container as a tar archive: enough of this host to run nvidia-smi, without any registry."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", dereference=True) as tar:
        for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/sbin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for path in ("/usr/bin/sleep", *libraries(host, "/usr/bin/sleep", "/usr/bin/nvidia-smi")):
            tar.add(path, path.lstrip("/"))
    return held.getvalue()


def legacy_containers(host: Host, engine: str) -> list[str]:
    """Return running containers that got a GPU otherwise than by CDI, and lose it when systemd reloads its units."""
    if engine != "docker":
        return []
    names = host.run("docker", "ps", "--quiet")[1].split()
    form = "{{.Name}} {{.HostConfig.Runtime}} {{json .HostConfig.DeviceRequests}}"
    shown = host.run("docker", "inspect", f"--format={form}", *names)[1] if names else ""
    return [
        line.split()[0].lstrip("/")
        for line in shown.splitlines()
        if " nvidia " in line or ('"Capabilities":[[' in line and '"Driver":"cdi"' not in line)
    ]


def check_container(seen: Seen) -> str:
    """A container sees the devices, and keeps them when systemd reloads its units."""
    host = seen.host
    if host.run("nvidia-ctk", "--version")[0]:
        raise NotApplicable("the container toolkit is not installed")
    asked = {"docker": "{{.ServerVersion}} {{json .CDISpecDirs}}", "podman": "{{.Version.Version}}"}
    answers = {name: host.run(name, "info", f"--format={form}") for name, form in asked.items()}
    engines = {name: answer for name, (code, answer) in answers.items() if not code}
    if not engines:
        raise NotApplicable("no container engine runs")
    # Docker's answer names the folders of CDI where it can do that.
    told = [in_container(seen, name, name == "podman" or "/" in answer) for name, answer in engines.items()]
    return "; ".join(told)


def clear(host: Host, engine: str) -> None:
    """Remove the container and the image of this or a killed check, by their names."""
    host.run(engine, "rm", "--force", PLACE)
    host.run(engine, "rmi", PLACE)


def in_container(seen: Seen, engine: str, by_name: bool) -> str:
    """Check one engine, with an image and a container that are removed at once."""
    host, expected = seen.host, len(seen.gpus)
    given = ["--device=nvidia.com/gpu=all"] if by_name else ["--runtime=nvidia", "--env=NVIDIA_VISIBLE_DEVICES=all"]
    where = "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu"
    refresh = "Run `systemctl restart nvidia-cdi-refresh`; `nvidia-ctk cdi list` shows the devices"

    def shown(when: str, mend: str) -> None:
        code, out = host.run(engine, "exec", f"--env={where}", PLACE, "/usr/bin/nvidia-smi", "--list-gpus")
        count = len(re.findall(r"^GPU \d+:", out, re.MULTILINE))
        if code or count != expected:
            words = " ".join(out.split())[:200]
            raise Fault(f"a container of {engine} sees {count} of {expected} devices {when}: {words}", mend)

    clear(host, engine)
    with tempfile.NamedTemporaryFile(prefix=f"{PLACE}-", suffix=".tar") as file:
        file.write(image(host))
        file.flush()
        code, out = host.run(engine, "import", file.name, PLACE, seconds=60)
    if code:
        raise Fault(f"{engine} takes no image: {out.strip()[:200]}", f"Look at `{engine} info`")
    try:
        code, out = host.run(engine, "run", "--detach", "--rm", f"--name={PLACE}", "--network=none", *given, PLACE,
                             "/usr/bin/sleep", KEEP_SECONDS, seconds=60)  # fmt: skip
        if code:
            raise Fault(f"{engine} starts no container with a GPU: {out.strip()[-200:]}", refresh)
        shown("at its start", refresh)
        others = [name for name in legacy_containers(host, engine) if name != PLACE]
        if others:
            return (
                f"{engine}'s see {expected}; not tried after daemon-reload, at which {', '.join(others)} would lose "
                "its GPU: start it with --device nvidia.com/gpu=…"
            )
        host.run("systemctl", "daemon-reload", seconds=60)
        shown(
            "after `systemctl daemon-reload`",
            "Give containers their GPU by CDI (`--device nvidia.com/gpu=all`), which Docker can from version 25 on",
        )
    finally:
        clear(host, engine)
    return f"{engine}'s see {expected}, also after daemon-reload"


# -- Programs of the platform


def check_workers(seen: Seen) -> str:
    """Each worker that has a GPU of its own sees it inside its unit, and PyTorch computes in flows' environments."""
    host, told = seen.host, []
    units = host.run("systemctl", "list-units", "--plain", "--no-legend", "--no-pager", "prefect-worker-*.service")[1]
    names = [line.split()[0] for line in units.splitlines() if line.strip()]
    mend = f"Run playbooks/workers.yml on the host, or see `journalctl -u {names[0] if names else 'prefect-worker-*'}`"
    inside = []
    for name in names:
        process = host.run("systemctl", "show", "--value", "--property=MainPID", name)[1].strip()
        variables = dict(pair.partition("=")[::2] for pair in host.read(f"/proc/{process}/environ").split("\0"))
        if process in ("", "0") or "CUDA_VISIBLE_DEVICES" not in variables:
            wanted = "|".join(map(re.escape, seen.want.get("gpu_pools") or ["-"]))
            if process not in ("", "0") and re.match(rf"prefect-worker-({wanted})(-\d+)?\.service", name):
                raise Fault(f"{name} was set up without a GPU, so its flows compute on the CPU", mend)
            continue
        enter = ["nsenter", f"--target={process}", "--mount", "--", "runuser", "--user", "prefect-worker", "--", "env",
                 f"CUDA_VISIBLE_DEVICES={variables['CUDA_VISIBLE_DEVICES']}", "CUDA_DEVICE_ORDER=PCI_BUS_ID",
                 "CUDA_CACHE_DISABLE=1"]  # fmt: skip
        _, out = host.run(*enter, sys.executable, "-", text=COUNT)
        if not re.search(r"^count [1-9]", out, re.MULTILINE):
            raise Fault(f"{name} sees no GPU: {' '.join(out.split())[-200:]}", mend)
        inside.append(enter)
    if not inside:
        raise NotApplicable("no worker of this host has a GPU of its own")
    told.append(f"{len(inside)} workers see theirs")
    for python in host.environments(str(seen.want.get("worker_home") or ""))[:1]:
        code, out = host.run(*inside[0], python, "-", text=TORCH, seconds=60)
        if code:
            raise Fault(
                " ".join((out.strip().splitlines() or ["PyTorch does not start"])[-1].split())[:300],
                "Lock a build of PyTorch for a CUDA that the driver has (`nvidia-smi` shows which) in the project",
            )
        told.append(out.strip().splitlines()[-1])
    return "; ".join(told)


def check_inference(seen: Seen) -> str:
    """The models of the services that have to run on a GPU do."""
    services = seen.want.get("inference") or []
    if not services:
        raise NotApplicable("no service has to run on a GPU: nvidia_inference_services is empty")
    processes = {value(each, "pid") for gpu in seen.gpus for each in gpu.element.iter("process_info")}
    groups = "\n".join(seen.host.read(f"/proc/{process}/cgroup") for process in sorted(processes))
    for service in services:
        if f"/models-{service}.service" not in groups:
            raise Fault(
                f"no process of models-{service}.service computes on a GPU, so {service} answers on the CPU",
                "Log the model with a build of PyTorch for CUDA; `journalctl -u models-"
                f"{service}` says what became of the device",
            )
    return f"{', '.join(services)} on CUDA"


CHECKS: dict[str, Callable[[Seen], str]] = {
    "GPU devices": check_devices,
    "GPU driver": check_driver,
    "GPU kernel module": check_module,
    "GPU errors (XID)": check_xids,
    "GPU memory": check_memory,
    "GPU persistence": check_persistence,
    "GPU computation": check_computation,
    "GPU PCIe link": check_pcie,
    "GPU clocks": check_clocks,
    "GPU in containers": check_container,
    "GPU in workers": check_workers,
    "GPU in inference": check_inference,
}


def verdicts(host: Host, want: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the verdict of each check, or one only for a host without a device."""
    if host.container() or not host.devices():
        why = "it is a container" if host.container() else "none is on the PCI bus"
        if want["require_device"]:
            text = f"no device: {why}. Check slot, power and passthrough, or set nvidia_require_device to false."
            yield {"name": "GPU devices", "ok": False, "skipped": False, "seconds": 0.0, "detail": text}
            return
        text = f"skipped: no device ({why}), and nvidia_require_device is false"
        yield {"name": "GPU", "ok": True, "skipped": True, "seconds": 0.0, "detail": text}
        return
    seen = Seen(host, want)
    for name, check in CHECKS.items():
        start = time.monotonic()
        verdict: dict[str, Any] = {"name": name, "ok": True, "skipped": False}
        try:
            verdict["detail"] = check(seen)
        except NotApplicable as reason:
            verdict |= {"skipped": True, "detail": str(reason)}
        except Fault as fault:
            verdict |= {"ok": False, "detail": str(fault)}
        except Exception as error:
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            verdict |= {"ok": False, "detail": f"the check itself failed: {words}. Report it with this text."}
        yield verdict | {"seconds": round(time.monotonic() - start, 3)}


def main(checks: list[dict[str, Any]]) -> None:
    """Run all checks, and print a line for each, also for those that there was no time for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # raises, so that a container is removed
    done: list[dict[str, Any]] = []
    try:
        done.extend(verdicts(Host(), checks[0]["arguments"]))
    except SystemExit:
        names = [*CHECKS][len(done) :]
        late = {"ok": False, "skipped": False, "seconds": 0.0, "detail": "not done: out of time. Raise smoke_timeout."}
        done.extend({"name": name} | late for name in names)
    print("\n".join(MARK + json.dumps(each) for each in done), flush=True)
