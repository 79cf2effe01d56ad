#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Collect facts about NVIDIA: devices, driver, packages, sources, container runtime. Changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_facts
short_description: Report NVIDIA devices of a host and the state of their software
description:
  - Finds devices by their PCI ids, so it works before a driver is installed.
  - Reports no devices in a container, because devices and driver belong to the machine.
options:
  kernel: {type: str, default: "", description: Kernel that modules must be built for. Empty for the running one.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look for devices
  metalworks.platform.nvidia_facts:
"""

RETURN = r"""
ansible_facts:
  type: dict
  returned: always
  description: A mapping C(nvidia) with devices, ids, container, kernel, kernels, dkms, build_failure, untrusted_key,
    loaded, nouveau, gpus, smi_error, packages, others, run_files, interrupted, sources, keyrings, cdi and docker.
    C(kernels) has the kernel and, if the next boot takes a newer one, that one, too. C(untrusted_key) is the
    certificate that modules are signed with here, if Secure Boot is on and does not trust it. C(others) has the
    packages of a driver that was installed before the role came, and C(run_files) the paths that NVIDIA's own
    installer left.
"""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.earlier_software import driver_packages, run_files
from ..module_utils.kernel_modules import build_failure, next_kernel, secure_boot, signing_certificate, trusts

VENDOR = "0x10de"
DISPLAY = "0x03"
"""PCI base class of display controllers; covers compute-only cards (0x0302) too."""
RELATED = re.compile(r"nvidia|cuda|^lib(cu|nv)|^linux-headers-")
OWN_SOURCES = {"metalworks-nvidia-components.sources", "nvidia-cuda.sources", "nvidia-container-toolkit.sources"}
"""Files under sources.list.d that these roles write."""


def read(path: Path) -> str:
    """Return a file's text; empty if it is missing."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def find_devices(root: Path) -> list[str]:
    """Return the PCI addresses of NVIDIA's display and compute devices."""
    folders = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [d.name for d in folders if read(d / "vendor") == VENDOR and read(d / "class").startswith(DISPLAY)]


def device_ids(root: Path) -> list[str]:
    """Return the PCI device ids of these devices, as four hexadecimal digits."""
    return [read(root / "sys/bus/pci/devices" / name / "device").removeprefix("0x") for name in find_devices(root)]


def in_container(root: Path) -> bool:
    """Tell whether this host is a container, from the marks of systemd or the engine."""
    return any((root / path).exists() for path in ("run/systemd/container", ".dockerenv", "run/.containerenv"))


def loaded_version(root: Path) -> str:
    """Return the version of the loaded driver; empty if none is loaded."""
    first = (read(root / "proc/driver/nvidia/version").splitlines() or [""])[0]
    found = re.search(r"\s(\d{3,}(?:\.\d+)+)\s", f"{first} ")
    return found[1] if found else ""


def built_versions(status: str, kernel: str) -> list[str]:
    """Return the versions of NVIDIA's modules that `dkms status` lists as installed for the kernel, without warning."""
    # dkms 3: "nvidia/580.1, 6.1.0-1-amd64, x86_64: installed"; dkms 2 has ", " for the first slash.
    line = re.compile(r"^nvidia[\w-]*(?:/|, )([^,]+), ([^,]+), [^:]+: installed\s*$", re.MULTILINE)
    return sorted({version for version, built_for in line.findall(status) if built_for == kernel})


def dkms_sources(root: Path) -> list[str]:
    """Return the module sources that DKMS can build, as `name/version`."""
    setting = re.compile(r"^PACKAGE_(?:NAME|VERSION)=[\"']?([^\"'\s]+)", re.MULTILINE)
    found = (setting.findall(read(conf)) for conf in sorted((root / "usr/src").glob("nvidia*/dkms.conf")))
    return ["/".join(pair) for pair in found if len(pair) == 2]


def parse_packages(listing: str) -> dict[str, dict[str, Any]]:
    """Return the related packages that are completely installed, with version and whether they are held."""
    rows = (line.split("|") for line in listing.splitlines())
    return {
        name: {"version": version, "held": state[0] == "h"}
        for state, name, version in rows
        if state[1:2] == "i" and RELATED.search(name)
    }


def parse_gpus(table: str) -> list[dict[str, Any]]:
    """Return name, driver and persistence mode of each GPU, from the output of nvidia-smi."""
    rows = csv.reader(table.splitlines(), skipinitialspace=True)
    return [{"name": name, "driver": driver, "persistence": mode == "Enabled"} for name, driver, mode in rows]


def one_line_sources(text: str) -> list[tuple[str, str, str, list[str]]]:
    """Parse the old format: URI, suite, keyring and components of each `deb` line."""
    line = re.compile(r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)([^#\n]*)", re.MULTILINE)
    parsed = []
    for options, uri, suite, components in line.findall(text):
        signed_by = dict(option.split("=", 1) for option in options.split() if "=" in option).get("signed-by", "")
        parsed.append((uri, suite, signed_by, components.split()))
    return parsed


def deb822_sources(text: str) -> list[tuple[str, str, str, list[str]]]:
    """Parse the new format; an embedded key stays as it is written."""
    parsed = []
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {
            key.lower(): value for key, value in re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, re.M)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                parsed.append((uri, suite, fields.get("signed-by", "").rstrip(), fields.get("components", "").split()))
    return parsed


def find_sources(root: Path) -> list[dict[str, Any]]:
    """Return apt's sources besides our own, one entry per URI and suite with all its components."""
    folder = root / "etc/apt/sources.list.d"
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in [root / "etc/apt/sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]:
        if path.name in OWN_SOURCES:
            continue
        parse = deb822_sources if path.suffix == ".sources" else one_line_sources
        for uri, suite, signed_by, components in parse(read(path)):
            entry = found.setdefault(
                (uri.rstrip("/"), suite),
                {
                    "uri": uri,
                    "suite": suite,
                    "signed_by": signed_by,
                    "components": [],
                    "file": f"/{path.relative_to(root)}",
                },
            )
            entry["components"] += [name for name in components if name not in entry["components"]]
    return list(found.values())


def docker_state(text: str) -> dict[str, Any]:
    """Return the state of the running Docker engine; empty without one."""
    try:
        info = json.loads(text)
    except ValueError:
        return {}
    if not info.get("ServerVersion"):
        return {}
    return {
        "version": info["ServerVersion"],
        "runtimes": sorted(info.get("Runtimes") or {}),
        "cdi": bool(info.get("CDISpecDirs")),
    }


def main() -> None:
    """Collect all facts; a missing tool counts as empty output."""
    module = AnsibleModule({"kernel": {"type": "str", "default": ""}}, supports_check_mode=True)
    root = Path("/")

    def run(*command: str) -> tuple[str, str]:
        path = module.get_bin_path(command[0])
        if path is None:
            return "", f"{command[0]} is not installed"
        code, out, err = module.run_command([path, *command[1:]])
        return (out, "") if code == 0 else ("", (err or out).strip())

    kernel = module.params["kernel"] or os.uname().release
    container = in_container(root)
    loaded = loaded_version(root)
    query = "--query-gpu=name,driver_version,persistence_mode"
    smi, smi_error = run("nvidia-smi", query, "--format=csv,noheader") if loaded else ("", "the driver is not loaded")
    status = run("dkms", "status")[0]
    kernels = [kernel] if container else [kernel, *filter(None, [next_kernel(root, kernel)])]
    certificate = signing_certificate(root) if secure_boot(root) and not container else ""
    if certificate and trusts("\n".join(run("mokutil", "--test-key", certificate))):
        certificate = ""
    listing = run("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}|${Package}|${Version}\n")[0]
    facts = {
        "devices": [] if container else find_devices(root),
        "ids": [] if container else device_ids(root),
        "container": container,
        "kernel": kernel,
        "kernels": [
            {
                "name": name,
                "headers": (root / "lib/modules" / name / "build").exists(),
                "built": built_versions(status, name),
            }
            for name in kernels
        ],
        "dkms": dkms_sources(root),
        "build_failure": build_failure(root),
        "untrusted_key": certificate,
        "loaded": loaded,
        "nouveau": (root / "sys/module/nouveau").exists(),
        "gpus": parse_gpus(smi),
        "smi_error": smi_error,
        "packages": parse_packages(listing),
        "others": driver_packages(root, listing),
        "run_files": run_files(root),
        "interrupted": any(line[1:2] in ("H", "U", "F", "W", "t") for line in listing.splitlines()),
        "sources": find_sources(root),
        "keyrings": sorted(path.name for path in (root / "etc/apt/keyrings").glob("*")),
        "cdi": [line for line in run("nvidia-ctk", "--quiet", "cdi", "list")[0].splitlines() if "=" in line],
        "docker": docker_state(run("docker", "info", "--format", "{{json .}}")[0]),
    }
    module.exit_json(changed=False, ansible_facts={"nvidia": facts})


if __name__ == "__main__":
    main()
