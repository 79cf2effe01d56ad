#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Apply the baseline of every host, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_baseline
short_description: Set up what every host has - authorities, a group, small files, uv, kernel parameters, the clock
description:
  - Before anything else, records what the host is like in C(/var/lib/metalworks/before), once. The platform's removal
    needs it.
  - Installs the certificates of the given authorities, one file each, and removes those that an earlier call installed
    and that are no longer wanted. Rebuilds the host's bundle when it does not hold what it should.
  - Finishes an interrupted package installation, and waits for one that is under way.
  - Stops and reports O(packages) that are missing. Install them with M(ansible.builtin.apt), then call again.
  - Installs uv with pip, which uses the host's own package index and certificates.
  - Enables chrony, sets its servers, and has systemd restart it whenever it ends. A container has no clock of its own,
    so chrony does not start there; the module then returns RV(runs=false).
  - Sets kernel parameters that differ. Skips them where they are read-only, as in a container.
options:
  authorities: {type: dict, required: true, description: Bundles of certificates in PEM by the name that messages use.}
  packages: {type: list, elements: str, required: true, description: Packages that must be installed.}
  group: {type: str, required: true, description: System group to create.}
  kernel: {type: dict, default: {}, description: 'Kernel parameters, named as sysctl does.'}
  uv_version: {type: str, required: true, description: Version of uv.}
  uv_requirements:
    type: str
    required: true
    description: Content of a requirements file with that version and its hashes.
  uv_path: {type: path, required: true, description: Where to install the program.}
  no_proxy:
    type: list
    elements: str
    default: []
    description:
      - Names and addresses that logins reach without a proxy, the most important first. They follow those that
        C(/etc/environment) has already.
  time_servers: {type: list, elements: str, default: [], description: Time servers. Empty for the distribution's.}
extends_documentation_fragment:
  - metalworks.platform.managed_files
  - metalworks.platform.managed_files.blocks
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Set up the host
  metalworks.platform.host_baseline:
    authorities: {}
    packages: [chrony, python3-venv]
    group: metalworks
    uv_version: 0.13.9
    uv_requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
    uv_path: /usr/local/bin/uv
"""

RETURN = r"""
ansible_facts: {type: dict, returned: success, description: Names of the installed packages as C(packages).}
missing: {type: list, elements: str, returned: success, description: Packages to install before the next call.}
done: {type: list, elements: str, returned: success, description: What was (or in check mode would be) changed.}
runs: {type: bool, returned: when no package is missing, description: Whether chrony runs.}
"""

import hashlib
import os
import re
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..module_utils.before import begin, keep, packages
from ..module_utils.host_module import HostModule
from ..module_utils.managed_files import SPEC as FILES
from ..module_utils.managed_files import Files
from ..module_utils.replace_file import read, replace
from ..module_utils.system_user import ensure_system_group
from ..module_utils.systemctl import show

DISTRIBUTION = Path("/usr/share/ca-certificates")
LOCAL = Path("/usr/local/share/ca-certificates")
LINKS = Path("/etc/ssl/certs")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PREFIX = "metalworks-"
PARAMETERS = Path("/proc/sys")
ENVIRONMENT = Path("/etc/environment")
DIRECT = "Metalworks: reached without a proxy"
LONGEST_VALUE = 1000
"""Linux-PAM cuts longer lines of /etc/environment off."""
LOCK_SECONDS = 300
LOCK_POLL_SECONDS = 2
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificates(text: str) -> dict[str, str]:
    """Return the certificates in a PEM text by fingerprint.

    Raises ValueError for one that is damaged.
    """
    found = {}
    for pem in PEM.findall(text):
        found[hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()[:32]] = f"{pem}\n"
    return found


def wanted(bundles: dict[str, str]) -> dict[str, str]:
    """Return all certificates of the bundles by fingerprint.

    Raises ValueError, with the bundle's name, for one without certificates or with one that is damaged.
    """
    found: dict[str, str] = {}
    for name, text in bundles.items():
        try:
            ours = certificates(text)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata="".join(ours.values()))
        except (ValueError, ssl.SSLError) as error:
            raise ValueError(f"{name} is not a readable PEM file with certificates: {error}") from error
        found |= ours
    return found


def trusted(files: Iterable[Path]) -> set[str]:
    """Return the fingerprints of the certificates in these files."""
    return {print_ for file in files for print_ in certificates(file.read_text(errors="replace"))}


def finish_installation(module: HostModule) -> str:
    """Finish an installation that a power loss or a killed play interrupted; return dpkg's output.

    Waits while another installation holds the lock. Fails the task with dpkg's error when the lock stays held.
    """
    if module.check_mode:
        return str(module.run_command(["dpkg", "--audit"])[1])
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        code, out, err = module.run_command(["dpkg", "--configure", "-a"], environ_update=QUIET)
        if code == 0:
            return str(out)
        if "lock" not in err or time.monotonic() > deadline:
            module.fail_json(msg=f"`dpkg --configure -a` failed with exit status {code}: {(err or out).strip()}")
        time.sleep(LOCK_POLL_SECONDS)


def ensure_trust(module: HostModule, bundles: dict[str, str]) -> bool:
    """Make the host trust the certificates of the bundles and no others of ours; tell whether that changed anything."""
    try:
        wants = wanted(bundles)
    except ValueError as error:
        module.fail_json(msg=str(error))
    ours = {file.stem.removeprefix(PREFIX): file for file in LOCAL.glob(f"{PREFIX}*.crt")}
    known = trusted(DISTRIBUTION.rglob("*.crt"))
    add = {key: pem for key, pem in wants.items() if key not in known and key not in ours}
    remove = [file for key, file in ours.items() if key not in wants]
    built = trusted([BUNDLE] if BUNDLE.exists() else [])
    dangling = any(not link.exists() for link in LINKS.glob(f"{PREFIX}*.pem"))
    changed = bool(add or remove) or dangling or not wants.keys() <= built
    if changed and not module.check_mode:
        for file in remove:
            file.unlink()
        for key, pem in add.items():
            replace(LOCAL / f"{PREFIX}{key}.crt", pem)
        # Where the program is missing, installing the package ca-certificates does this.
        if program := shutil.which("update-ca-certificates"):
            # Only --fresh removes the links of files that are gone.
            module.run_command([program, *(["--fresh"] if remove or dangling else [])], check_rc=True)
    return changed


CHRONY = "chrony.service"
STATE = ("LoadState", "ActiveState", "UnitFileState", "ConditionResult", "ConditionTimestampMonotonic", "Restart",
         "NeedDaemonReload")  # fmt: skip
SOURCES = Path("/etc/chrony/sources.d/metalworks.sources")
ADDITION = Path(f"/etc/systemd/system/{CHRONY}.d/metalworks.conf")
# The distribution's unit is not restarted after a kill, and clocks that differ break certificates and signed requests.
RESTART = """\
# Ansible managed
[Unit]
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=3
"""


def ensure_kernel(module: HostModule, wanted: dict[str, Any], parameters: Path = PARAMETERS) -> list[str]:
    """Set the parameters that differ in the running kernel; return their names. A file sets them at boot."""
    if os.statvfs(parameters).f_flag & os.ST_RDONLY:
        return []
    files = {name: parameters / name.replace(".", "/") for name in wanted}
    differ = [name for name, file in files.items() if file.exists() and file.read_text().strip() != str(wanted[name])]
    for name in differ if not module.check_mode else ():
        files[name].write_text(f"{wanted[name]}\n")
    return differ


def standing(module: HostModule, path: Path) -> str:
    """Return the version of the installed uv; empty if none runs."""
    if not path.exists():
        return ""
    found = re.match(r"uv (\S+)", module.run_command([str(path), "--version"])[1])
    return found.group(1) if found else ""


def ensure_uv(module: HostModule, version: str, requirements: str, path: Path) -> bool:
    """Install this version of uv; tell whether that changed anything."""
    if not re.search(rf"^uv=={re.escape(version)}\s", requirements, re.MULTILINE):
        module.fail_json(msg=f"the requirements file has no hashes of uv {version}; add them with `make locks`")
    if standing(module, path) == version:
        return False
    if not module.check_mode:
        with tempfile.TemporaryDirectory(prefix="metalworks-uv-") as scratch:
            locked = Path(scratch, "requirements.txt")
            locked.write_text(requirements)
            module.run_command([sys.executable, "-m", "venv", f"{scratch}/venv"], check_rc=True)
            options = ["--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            pip = [f"{scratch}/venv/bin/python", "-m", "pip", "install", *options, "--requirement", str(locked)]
            module.run_command(pip, check_rc=True)
            keep(path)
            draft = path.with_name(f".{path.name}.draft")
            shutil.copyfile(f"{scratch}/venv/bin/uv", draft)
            draft.chmod(0o755)
            draft.replace(path)
        if (now := standing(module, path)) != version:
            module.fail_json(msg=f"{path} reports version {now!r} after the installation of {version}")
    return True


def ensure_time(module: HostModule, servers: list[str]) -> tuple[bool, bool]:
    """Run chrony with these servers; return whether that changed anything, and whether it runs."""
    state = show(module, CHRONY, *STATE)
    if state["LoadState"] != "loaded":
        if not module.check_mode:
            module.fail_json(msg=f"systemd reports {CHRONY} as {state['LoadState']}; check `systemctl status {CHRONY}`")
        return True, False
    text = "".join(f"server {server} iburst\n" for server in servers)
    rewrite = text != read(SOURCES)
    known = state["Restart"] == "always" and state["NeedDaemonReload"] == "no"
    restarts = known and read(ADDITION) == RESTART
    # systemd has already found that the condition does not hold: trying again would only fill the journal.
    kept_out = state["ConditionResult"] == "no" and state["ConditionTimestampMonotonic"] != "0"
    enable, start = state["UnitFileState"] != "enabled", state["ActiveState"] != "active" and not kept_out
    if module.check_mode:
        return rewrite or enable or start or not restarts, state["ActiveState"] == "active"
    if rewrite:
        replace(SOURCES, text)
    if not restarts:
        replace(ADDITION, RESTART)
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    if enable:
        module.run_command(["systemctl", "--quiet", "enable", CHRONY], check_rc=True)
    if start:
        module.run_command(["systemctl", "start", CHRONY])
        state = show(module, CHRONY, *STATE)
        if state["ActiveState"] != "active" and state["ConditionResult"] == "yes":
            command = ["journalctl", "--unit", CHRONY, "--lines", "20", "--no-pager", "--output", "cat"]
            journal = module.run_command(command)[1]
            module.fail_json(msg=f"{CHRONY} is {state['ActiveState']}. Its journal ends:\n{journal}")
    runs = state["ActiveState"] == "active"
    if runs:
        # Cheap, and without effect where the servers are the same, so no restart can be forgotten.
        module.run_command(["chronyc", "reload", "sources"], check_rc=True)
    return rewrite or enable or (start and runs) or not restarts, runs


def direct(text: str, names: list[str]) -> str:
    """Return lines for /etc/environment: what its text, without our block, reaches without a proxy, then the names."""
    own, _, others = text.partition(f"# BEGIN {DIRECT}\n")
    lines = own + others.partition(f"# END {DIRECT}\n")[2]
    known = re.findall(r"^\s*(?:export\s+)?no_proxy\s*=(.*)", lines, re.IGNORECASE | re.MULTILINE)
    there = [name for value in known for name in re.split(r"[\s,]+", value.strip().strip("\"'")) if name]
    value = ",".join(dict.fromkeys([*there, *names]))
    if "*" in there:  # nothing is reached through a proxy, and clients understand this value only on its own
        value = "*"
    if len(value) > LONGEST_VALUE:
        value = value[: LONGEST_VALUE + 1].rpartition(",")[0]
    return f"no_proxy={value}\nNO_PROXY={value}\n"


def converge(module: HostModule) -> dict[str, Any]:
    """Apply the baseline as far as the installed packages allow; return what was done."""
    wants = module.params
    # First of all, because everything after it changes the host.
    done = ["record of the host"] if begin(module, wants["kernel"]) else []
    done += ["authorities"] if ensure_trust(module, wants["authorities"]) else []
    done += ["interrupted installation"] if finish_installation(module) else []
    there = sorted({name for names in packages(module).values() for name in names})
    result: dict[str, Any] = {"ansible_facts": {"packages": there}, "done": done}
    result["missing"] = [name for name in wants["packages"] if name not in there]
    if result["missing"] and not module.check_mode:
        return result
    done += ["group"] if ensure_system_group(module, wants["group"]) else []
    files = Files(module)
    files.converge(wants)
    if wants["no_proxy"]:
        content = direct(read(ENVIRONMENT), wants["no_proxy"])
        files.block({"path": str(ENVIRONMENT), "name": DIRECT, "content": content, "create": True})
    done += files.paths
    uv = ensure_uv(module, wants["uv_version"], wants["uv_requirements"], Path(wants["uv_path"]))
    done += [f"kernel {name}" for name in ensure_kernel(module, wants["kernel"])]
    clock, runs = ensure_time(module, wants["time_servers"])
    done += ["uv"] * uv + ["time"] * clock
    return result | {"runs": runs, "diff": files.diff}


def main() -> None:
    """Read the arguments and converge."""
    required, texts = {"type": "str", "required": True}, {"type": "list", "elements": "str"}
    module = HostModule(
        argument_spec={
            "authorities": {"type": "dict", "required": True},
            "packages": {**texts, "required": True},
            "group": required,
            **{name: FILES[name] for name in ("directories", "files", "blocks")},
            "kernel": {"type": "dict", "default": {}},
            "uv_version": required,
            "uv_requirements": required,
            "uv_path": {"type": "path", "required": True},
            "no_proxy": {**texts, "default": []},
            "time_servers": {**texts, "default": []},
        },
        supports_check_mode=True,
    )
    result = converge(module)
    module.exit_json(changed=bool(result["done"]), **result)


if __name__ == "__main__":
    main()
