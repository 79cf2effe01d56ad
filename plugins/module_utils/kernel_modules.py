"""What decides whether a kernel module that DKMS builds here loads: kernels, Secure Boot, and why a build failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

EFI_VARIABLES = "sys/firmware/efi/efivars"
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM_DOES_NOT_CHECK = "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
"""Set by `mokutil --disable-validation`: the kernel then takes unsigned modules although Secure Boot is on."""
ERROR = re.compile(r"\berror\b|\*\*\*|No space left|not found|No such file|Killed|Cannot allocate", re.IGNORECASE)
ERRORS = 3
CURES = (
    (r"No space left on device", "Free space on the host's disk."),
    (r"Killed|Cannot allocate memory|virtual memory exhausted", "Give the host more memory or swap."),
    (r"(cc|gcc|ld|make)\S*: (command )?not found|compiler", "Install the compiler that the log names."),
    (r"Module\.symvers|kernel (source|headers)|include/config", "Install the headers of exactly this kernel."),
    (
        r"error: (implicit declaration|too (few|many) arguments|incompatible|conflicting types|.*no member)",
        "This branch of the driver does not know this kernel: put a version of a later branch first in "
        "nvidia_driver_versions, or boot an older kernel and hold it with `apt-mark hold`.",
    ),
)
"""What mends a failed build, by what its log says."""
ENROLLED = re.compile(r" is already (enrolled|in db|in the built-in trusted keyring)$|^Already in kernel", re.MULTILINE)


def sort_key(kernel: str) -> list[str | int]:
    """Sort kernels by version as a boot loader does: 6.1.0-9 before 6.1.0-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", kernel)]


def next_kernel(root: Path, running: str) -> str:
    """Return the kernel that the next boot takes: the newest that is installed; empty if that is the running one."""
    installed = [path.name.removeprefix("vmlinuz-") for path in root.glob("boot/vmlinuz-*")]
    newest = max(installed, key=sort_key, default=running)
    return newest if sort_key(newest) > sort_key(running) else ""


def is_set(variable: Path) -> bool:
    """Tell whether a variable of the firmware is 1: a byte after four with its attributes."""
    try:
        return variable.read_bytes()[4:] == b"\x01"
    except OSError:
        return False


def secure_boot(root: Path) -> bool:
    """Tell whether this kernel loads signed modules only, because the firmware's Secure Boot is on."""
    folder = root / EFI_VARIABLES
    return is_set(folder / SECURE_BOOT) and not is_set(folder / SHIM_DOES_NOT_CHECK)


def signing_certificate(root: Path) -> str:
    """Return the path of the certificate that DKMS signs modules with, whether it is there or not."""
    setting = re.compile(r"^mok_certificate=[\"']?([^\"'\s]+)", re.MULTILINE)
    own = [root / "etc/dkms/framework.conf", *sorted(root.glob("etc/dkms/framework.conf.d/*.conf"))]
    named = [path for file in own if file.is_file() for path in setting.findall(file.read_text())]
    if named:
        return str(named[-1])
    release = root / "etc/os-release"
    ubuntu = release.is_file() and re.search(r"^ID=ubuntu$", release.read_text(), re.MULTILINE)
    return "/var/lib/shim-signed/mok/MOK.der" if ubuntu else "/var/lib/dkms/mok.pub"


def trusts(answer: str) -> bool:
    """Tell whether the firmware trusts a certificate, by the answer of `mokutil --test-key`."""
    return ENROLLED.search(answer) is not None


def build_failure(root: Path) -> dict[str, Any]:
    """Return log, error lines and mend of the newest failed build of an NVIDIA module; empty without one.

    DKMS leaves a build's folder behind only if the build failed.
    """
    logs = sorted(root.glob("var/lib/dkms/nvidia*/*/build/make.log"), key=lambda log: log.stat().st_mtime)
    if not logs:
        return {}
    text = logs[-1].read_text(errors="replace")
    lines = [line.strip()[:200] for line in text.splitlines() if ERROR.search(line)]
    cures = [cure for pattern, cure in CURES if any(re.search(pattern, line) for line in lines)]
    return {"log": f"/{logs[-1].relative_to(root)}", "lines": lines[:ERRORS], "cure": cures[0] if cures else ""}
