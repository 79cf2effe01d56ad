#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Report facts about a host in one round trip, without changing it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_host
short_description: Check a host and the input of its roles, without changing anything
description:
  - Checks the site's choices against their schema, other variables against the argument specs of the host's roles, the
    team's own certificate, distribution, Python, memory, disks, devices and ports. Reports problems and never fails;
    M(metalworks.platform.validate_site) does.
  - Returns distribution, kernel, memory and Python as facts under Ansible's own names, so that no play need gather them
    again.
  - Runs in check mode too. Run it as root to learn which units hold the ports.
options:
  home: {type: str, required: true, description: Group of the platform's hosts. Others are left alone.}
  roles: {type: path, required: true, description: Folder of the roles on the controller.}
  schema: {type: path, description: JSON Schema of the site's choices. Omit to leave them unchecked.}
  accounts: {type: str, required: true, description: Group of the hosts where people get accounts.}
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
  written_units: {type: dict, default: {}, description: 'Units that roles write, by group.'}
  people: {type: dict, default: {}, description: UID of each person with an account here. Set by the action.}
  units: {type: list, elements: str, default: [], description: Those of this host. Set by the action.}
  docker:
    description: Options of M(metalworks.platform.docker_engine) where an engine is wanted. Set by the action.
    type: dict
    default: {}
  driver:
    description: Whether NVIDIA's driver is installed here even without a device. Set by the action.
    type: bool
    default: false
  address:
    description: Address by which the other hosts should reach this one.
    type: str
    default: ''
  distributions: {type: dict, required: true, description: Supported versions by distribution.}
  python: {type: list, elements: int, required: true, description: Oldest supported version of Python.}
  minimums:
    type: dict
    required: true
    description: 'Memory and disk by group: C(memory_mb), C(disk_mb) and C(free_mb).'
  device: {type: dict, required: true, description: C(group) of hosts with a GPU and the C(variable) that demands one.}
  runtimes: {type: dict, default: {}, description: 'Variable that says what programs run in, by group.'}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Inspect each host
  metalworks.platform.validate_host:
    home: platform
    roles: "{{ role_path | dirname }}"
    accounts: workstation
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
refused:
  description: Choices that the schema refuses, each as variable, place within it, what is wrong and what to do.
  returned: always
  type: list
  elements: list
login:
  description: Account that Ansible logged in with.
  returned: when the host could be looked at
  type: str
system_accounts:
  description: Names that a person's account cannot have on this host.
  returned: when the host could be looked at, and people get accounts there
  type: list
  elements: str
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
import platform
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.facts.system.distribution import DistributionFactCollector

from ..module_utils import docker_settings
from ..module_utils.earlier_software import driver_packages, foreign_units, nginx_files, postgresql_clusters, run_files
from ..module_utils.system_user import login_account, system_names, wrong_uid

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


def sockets_of(process: Path) -> set[str]:
    """Return the inodes of a process's sockets; skip descriptors that are closed meanwhile."""
    inodes = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes


def holders(inodes: dict[str, int], proc: Path) -> list[dict[str, Any]]:
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
    place = Path(path)
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return {"size_mb": usage.total >> 20, "free_mb": usage.free >> 20}


def nvidia_devices(pci: Path) -> int:
    """Return how many of a PCI bus's devices are NVIDIA's graphics or compute cards."""
    cards = (place for place in pci.glob("*") if (place / "vendor").read_text().strip() == "0x10de")
    return sum((place / "class").read_text().startswith(("0x0300", "0x0302")) for place in cards)


def has_address(address: str) -> bool:
    """Tell whether the host has an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:  # another host's, or no address at all
            return False
    return True


def listens(path: str) -> bool:
    """Tell whether somebody listens at a Unix socket; a socket's file outlives its program."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def routed_addresses() -> list[str]:
    """Return the addresses that the host's default routes use, at most one for each IP version. No packet is sent."""
    found = []
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect((anywhere, 9))
            found.append(str(probe.getsockname()[0]))
    return found


def earlier_software(module: AnsibleModule, driver: bool) -> dict[str, Any]:
    """Return what others set up on the host that the platform would replace."""
    root = Path("/")

    def packages(layout: str, *names: str) -> str:
        # Empty without the names' packages, and on a distribution without dpkg, which is refused for that.
        if not shutil.which("dpkg-query"):
            return ""
        return str(module.run_command(["dpkg-query", "--show", "--showformat", layout, *names])[1])

    nginx = (root / "etc/nginx").exists()
    return {
        "nginx": nginx_files(root, packages("${Conffiles}\n", "nginx", "nginx-common")) if nginx else [],
        "postgresql": postgresql_clusters(root),
        "units": foreign_units(root, module.params["units"]),
        "run_files": run_files(root) if driver else [],
        "driver": driver_packages(root, packages("${db:Status-Abbrev}|${Package}|${Version}\n")) if driver else {},
    }


def docker_faults(module: AnsibleModule) -> list[tuple[str, str]]:
    """Return what is wrong with the host's Docker engine, or with what is wanted of it."""
    wants = module.params["docker"]
    if not wants or not Path("/run/systemd/system").is_dir():
        return []
    return docker_settings.faults(wants, docker_settings.look(module))


def main() -> None:
    """Return facts, listeners, disks and the host's address."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
            "address": {"type": "str", "default": ""},
            "people": {"type": "dict", "default": {}},
            "units": {"type": "list", "elements": "str", "default": []},
            "docker": {"type": "dict", "default": {}},
            "driver": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    tables = [Path("/proc/net", name) for name in ("tcp", "tcp6")]
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
            "service_mgr": "systemd" if Path("/run/systemd/system").is_dir() else "service",
            "pkg_mgr": "apt" if shutil.which("apt-get") else "unknown",
        }
    )
    devices = nvidia_devices(Path("/sys/bus/pci/devices"))
    module.exit_json(
        changed=False,
        ansible_facts=facts,
        python=list(sys.version_info[:2]),
        disks={path: disk(path) for path in module.params["paths"]},
        nvidia_devices=devices,
        docker=docker_faults(module),
        docker_listens=Path("/usr/bin/docker").exists() and listens("/run/docker.sock"),
        earlier=earlier_software(module, driver=bool(devices) or module.params["driver"]),
        address={"has": has_address(module.params["address"]), "routed": routed_addresses()},
        listeners=holders(inodes, Path("/proc")),
        login=login_account(),
        uids=[fault for name, uid in module.params["people"].items() if (fault := wrong_uid(name, uid))],
        system_accounts=system_names(),
    )


if __name__ == "__main__":
    main()
