#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Report facts about a host in one round trip, without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_host
short_description: Check a host and the input of its roles, without changing anything
description:
  - Checks variables against the argument specs of the host's roles, the team's own certificate, distribution, Python,
    memory, disks, devices and ports. Reports problems and never fails; M(metalworks.platform.validate_site) does.
  - Returns distribution, kernel, memory and Python as facts under Ansible's own names, so that no play need gather them
    again.
  - Runs in check mode too. Run it as root to learn which units hold the ports.
options:
  home: {type: str, required: true, description: Group of the platform's hosts. Others are left alone.}
  roles: {type: path, required: true, description: Folder of the roles on the controller.}
  role_groups: {type: dict, required: true, description: Group that a role runs in where the names differ.}
  ports:
    type: list
    elements: dict
    required: true
    description: Ports of the platform with C(group), C(variable), C(unit) and perhaps C(default) and C(fixed).
  paths:
    description: Directories whose filesystems are measured. The nearest existing parent stands for a missing one.
    type: list
    elements: path
    default: [/]
  distributions: {type: dict, required: true, description: Supported versions by distribution.}
  python: {type: list, elements: int, required: true, description: Oldest supported version of Python.}
  minimums:
    type: dict
    required: true
    description: 'Memory and disk by group: C(memory_mb), C(disk_mb) and C(free_mb).'
  device: {type: dict, required: true, description: C(group) of hosts with a GPU and the C(variable) that demands one.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Inspect each host
  metalworks.platform.validate_host:
    home: platform
    roles: "{{ role_path | dirname }}"
    role_groups: {}
    ports: []
    paths: [/opt, /var]
    distributions: {Debian: ["12", "13"]}
    python: [3, 11]
    minimums: {platform: {memory_mb: 2000, disk_mb: 10000, free_mb: 2000}}
    device: {group: nvidia, variable: nvidia_require_device}
  become: true
  register: validated
"""

RETURN = r"""
problems:
  description: Problems, each as place, what is wrong and what to do.
  returned: always
  type: list
  elements: list
unresolved:
  description: Variables that cannot be computed on this host, each with the reason.
  returned: always
  type: list
  elements: list
ansible_facts:
  description: Distribution, kernel, memory and Python under Ansible's own names.
  returned: when the host could be looked at
  type: dict
"""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.facts.system.distribution import DistributionFactCollector

LISTEN = "0A"
UNIT = re.compile(r"/([^/]+\.(?:service|socket|scope))(?:/|$)")


def listening_inodes(table: str) -> dict[str, int]:
    """Return socket inode → port of the listening sockets in the text of /proc/net/tcp or tcp6."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTEN:
            found[fields[9]] = int(fields[1].rsplit(":", 1)[1], 16)
    return found


def unit_of(cgroup: str) -> str:
    """Return the innermost systemd unit in the text of /proc/<pid>/cgroup, or nothing."""
    units = [match for line in cgroup.splitlines() for match in UNIT.findall(line)]
    return units[-1] if units else ""


def sockets_of(process: pathlib.Path) -> set[str]:
    """Return the inodes of a process's sockets; skip descriptors that are closed meanwhile."""
    inodes = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes


def holders(inodes: dict[str, int], proc: pathlib.Path) -> list[dict[str, Any]]:
    """Return every listening port once per process that uses it, with the process's unit."""
    found: dict[tuple[int, str, str], None] = {}
    owned: set[str] = set()
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or may not be inspected
            sockets = sockets_of(process) & inodes.keys()
            if sockets:
                unit = unit_of((process / "cgroup").read_text())
                name = (process / "comm").read_text().strip()
                found.update(dict.fromkeys((inodes[inode], unit, name) for inode in sockets))
                owned |= sockets
    found.update(dict.fromkeys((port, "", "") for inode, port in inodes.items() if inode not in owned))
    return [{"port": port, "unit": unit, "process": name} for port, unit, name in sorted(found)]


def disk(path: str) -> dict[str, int]:
    """Return size and free space, in MB, of the filesystem that holds a path or would hold it."""
    place = pathlib.Path(path)
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return {"size_mb": usage.total >> 20, "free_mb": usage.free >> 20}


def nvidia_devices(pci: pathlib.Path) -> int:
    """Return how many of a PCI bus's devices are NVIDIA's graphics or compute cards."""
    cards = (place for place in pci.glob("*") if (place / "vendor").read_text().strip() == "0x10de")
    return sum((place / "class").read_text().startswith(("0x0300", "0x0302")) for place in cards)


def main() -> None:
    """Return facts, listeners and disks."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "default": ["/"]}}, supports_check_mode=True
    )
    tables = [pathlib.Path("/proc/net", name) for name in ("tcp", "tcp6")]
    inodes: dict[str, int] = {}
    for table in tables:
        if table.exists():
            inodes.update(listening_inodes(table.read_text()))
    facts = DistributionFactCollector().collect(module=module, collected_facts={})
    facts.update(
        {
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "hostname": platform.node().split(".")[0],
            "memtotal_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "processor_vcpus": os.cpu_count() or 1,
            "python_version": platform.python_version(),
            # Without these two, Ansible would make another round trip.
            "service_mgr": "systemd" if pathlib.Path("/run/systemd/system").is_dir() else "service",
            "pkg_mgr": "apt" if shutil.which("apt-get") else "unknown",
        }
    )
    module.exit_json(
        changed=False,
        ansible_facts=facts,
        python=list(sys.version_info[:2]),
        disks={path: disk(path) for path in module.params["paths"]},
        nvidia_devices=nvidia_devices(pathlib.Path("/sys/bus/pci/devices")),
        listeners=holders(inodes, pathlib.Path("/proc")),
    )


if __name__ == "__main__":
    main()
