"""The host as it is: the edge where tests put recorded readings."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .products import LOAD_SECONDS, load


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
