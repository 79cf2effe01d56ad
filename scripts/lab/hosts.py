"""The lab's hosts: create them with molecule, authorize the lab's key, start them again, add one, remove all."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.common import CACHE, LAB, ROOT, ProblemError, capture, end, logged, succeeds, wait_until
from scripts.lab import host_image

SCENARIO = ROOT / "molecule" / "cluster" / "molecule.yml"
CREATE = ROOT / "molecule" / "shared" / "create.yml"
INVENTORY = ROOT / "inventory" / "lab"
STATE = LAB / "molecule"
KEY = LAB / "id_ed25519"
KNOWN_HOSTS = LAB / "known_hosts"
SSH_CONFIG = LAB / "ssh_config"
CONTROL_SOCKETS = Path.home() / ".ansible/cp" / f"metalworks-{hashlib.sha256(str(LAB).encode()).hexdigest()[:12]}"
"""The same path as in the lab's inventory; outside the clone, because a socket's path has at most 108 bytes."""
MADE_BY_TESTS = LAB / "made-by-tests"
EXTRA_CA = LAB / "extra-ca.pem"
NETWORK = "metalworks-lab"
LABEL = "metalworks.lab=host"
BOOT_TIMEOUT = 90
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Host:
    """A machine of the lab."""

    name: str
    address: str


def secrets() -> dict[str, Any]:
    """Return the variables of the lab's vault."""
    loaded: dict[str, Any] = yaml.safe_load((INVENTORY / "group_vars/all/vault.yml").read_text())
    return loaded


def declared(path: Path = SCENARIO) -> list[Host]:
    """Return the hosts that the scenario declares."""
    platforms = yaml.safe_load(path.read_text())["platforms"]
    return [Host(each["name"], each["networks"][0]["ipv4_address"]) for each in platforms]


def containers() -> dict[str, dict[str, Any]]:
    """Return what the engine knows about the lab's containers, by name, including stopped ones."""
    ids = capture(["docker", "ps", "-aq", "--filter", f"label={LABEL}", "--filter", f"network={NETWORK}"]).split()
    if not ids:
        return {}
    found: list[dict[str, Any]] = json.loads(capture(["docker", "inspect", *ids]))
    return {each["Name"].lstrip("/"): each for each in found}


def hosts(there: Mapping[str, Mapping[str, Any]]) -> list[Host]:
    """Return the hosts of containers, including those that were added by hand."""
    networks = {name: each["NetworkSettings"]["Networks"][NETWORK]["IPAMConfig"] for name, each in there.items()}
    return [Host(name, str(network["IPv4Address"])) for name, network in sorted(networks.items())]


def members(listed: Mapping[str, Any], group: str) -> list[str]:
    """Return the hosts of a group and its children, from the output of `ansible-inventory --list`."""
    entry = listed.get(group, {})
    found = list(entry.get("hosts", []))
    for child in entry.get("children", []):
        found += [host for host in members(listed, child) if host not in found]
    return found


def up() -> str:
    """Make every declared host exist, run and accept the lab's key; return what was done."""
    there = containers()
    refuse_foreign(there)
    prepare_machine()
    names = {host.name for host in declared()}
    wanted = capture(["docker", "image", "inspect", "--format", "{{.Id}}", host_image.current()]).strip()
    outdated = sorted(name for name in names & there.keys() if there[name]["Image"] != wanted)
    if outdated:
        logged(["docker", "rm", "--force", "--volumes", *outdated])
    missing = sorted(names - (there.keys() - set(outdated)))
    if missing:
        shutil.rmtree(STATE, ignore_errors=True)  # molecule trusts its state file, not the engine
        molecule("create")
    stopped = sorted(name for name, each in containers().items() if not each["State"]["Running"])
    if stopped:
        logged(["docker", "start", *stopped])
    if missing or stopped or not SSH_CONFIG.exists():
        authorize(hosts(containers()))
    done = [f"{what} {', '.join(which)}" for what, which in (("created", missing), ("started", stopped)) if which]
    return "; ".join(done) or "all run already"


def foreign(there: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Return the other checkout that made one of these containers, if any: names and addresses are the same."""
    for each in there.values():
        for bind in each["HostConfig"]["Binds"]:
            source, target, *_ = bind.split(":")
            if target == "/var/cache/metalworks/uv" and Path(source).resolve() != (CACHE / "uv").resolve():
                return Path(source).parent.parent
    return None


def refuse_foreign(there: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to use the lab of another checkout: its keys and secrets are not here."""
    if checkout := foreign(there):
        raise ProblemError(
            f"the lab of {checkout} is up: `make lab-down` there first "
            "(here it removes that one too, but leaves the keys and secrets in its folder)"
        )


def prepare_machine() -> None:
    """Provide what hosts need: shared directories, the lab's key, this machine's extra certificates."""
    for directory in (CACHE / "uv", LAB):
        directory.mkdir(parents=True, exist_ok=True)
    CONTROL_SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_key()
    write_extra_ca()


INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
WATCHERS = 12
"""Programs on a host that watch files (systemd, journald, D-Bus, services). The kernel's limit is for all hosts."""


def let_watch(number: int) -> None:
    """Raise the kernel's limit for this many hosts more: a host whose systemd cannot watch files does not boot."""
    number += len(capture(["docker", "ps", "-q", "--filter", "label=metalworks.scenario"]).split())
    needed = number * WATCHERS
    if int(INOTIFY.read_text()) >= needed:
        return
    try:
        INOTIFY.write_text(str(needed))
    except OSError as error:
        raise ProblemError(
            f"the kernel's limit of inotify instances is too low for {number} lab hosts: run "
            f"`sudo sysctl fs.inotify.max_user_instances={needed}`"
        ) from error


def molecule(command: str, *arguments: str) -> None:
    """Run molecule on the lab's scenario; its output goes to the log."""
    executable = Path(sys.executable).parent / "molecule"
    logged([executable, command, "-s", "cluster", *arguments], extra_env=molecule_environment())


def molecule_environment() -> dict[str, str]:
    """Return the environment variables of the scenario."""
    return {
        "METALWORKS_LAB_MTU": str(outer_mtu()),
        "MOLECULE_EPHEMERAL_DIRECTORY": str(STATE),
        # Beside a galaxy.yml, molecule would warn that it expects scenarios in extensions/.
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "NO_COLOR": "1",
    }


def outer_mtu() -> int:
    """Return the MTU of the interface with the default route, through which the lab's packets must fit."""
    routes = json.loads(capture(["ip", "-json", "route", "show", "default"]))
    if not routes:
        return 1500
    links = json.loads(capture(["ip", "-json", "link", "show", "dev", routes[0]["dev"]]))
    return int(links[0]["mtu"])


def add(*these: Host) -> None:
    """Start more hosts like the scenario's; the caller adds them to an inventory."""
    there = containers()
    refuse_foreign(there)
    for host in these:
        if host.name in there:
            raise ProblemError(f"{host.name} exists already: to remove it, run `docker rm -f -v {host.name}`")
    let_watch(len(these))
    labels = dict([LABEL.split("=")])
    platforms = [
        {"name": host.name, "labels": labels, "networks": [{"name": NETWORK, "ipv4_address": host.address}]}
        for host in these
    ]
    choices = json.dumps({"platforms": platforms, "networks": []})
    executable = Path(sys.executable).with_name("ansible-playbook")
    logged([executable, CREATE, "--extra-vars", choices], extra_env=molecule_environment())
    authorize(these)


def power_off(host: Host, *, gently: bool = False) -> str:
    """End a host like a machine that loses its power, or in good order; return its /etc/hosts for `power_on`."""
    names = capture(["docker", "exec", host.name, "cat", "/etc/hosts"])
    capture(["docker", "stop", "--time", "90", host.name] if gently else ["docker", "kill", host.name])
    return names


def power_on(host: Host, names: str) -> None:
    """Start a host again. Docker writes /etc/hosts at every start; on a machine it stays."""
    capture(["docker", "start", host.name])
    forget_connections([host.address])
    capture(["docker", "exec", "--interactive", host.name, "tee", "/etc/hosts"], stdin=names)


def discard(*these: Host) -> None:
    """Remove these hosts with their volumes, and what SSH knows about them, even if they are gone already."""
    there = sorted({host.name for host in these} & containers().keys())
    if there:
        logged(["docker", "rm", "--force", "--volumes", *there])
    forget_connections(host.address for host in these)
    gone = {host.address for host in these}
    lines = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
    replace(KNOWN_HOSTS, (f"{line}\n" for line in lines if line.split()[0] not in gone))
    write_ssh_config(hosts(containers()))


def make_key() -> None:
    """Generate the key that the lab's hosts accept."""
    if not KEY.exists():
        capture(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "metalworks-lab", "-f", KEY])


def write_extra_ca() -> None:
    """Save the CAs that this machine trusts and a fresh host does not, such as a company proxy's."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    image = host_image.current()
    if not bundle.is_file() or (EXTRA_CA.exists() and EXTRA_CA.stat().st_mtime > bundle.stat().st_mtime):
        return
    theirs = capture(["docker", "run", "--rm", "--network=none", image, "cat", "/etc/ssl/certs/ca-certificates.crt"])
    extra = additional_certificates(bundle.read_text(errors="replace"), theirs)
    EXTRA_CA.unlink(missing_ok=True)
    if extra:
        EXTRA_CA.write_text("".join(f"{certificate}\n" for certificate in extra))


def additional_certificates(ours: str, theirs: str) -> list[str]:
    """Return the certificates of one bundle that another lacks."""
    known = {"".join(each.split()) for each in CERTIFICATE.findall(theirs)}
    return [each for each in CERTIFICATE.findall(ours) if "".join(each.split()) not in known]


def authorize(these: Iterable[Host]) -> None:
    """Authorize the lab's key, read the host keys through Docker (none is taken on trust), and wait for SSH."""
    these = list(these)
    forget_connections(host.address for host in these)
    lines = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
    known = {line.split()[0]: line for line in lines}
    public = KEY.with_suffix(".pub").read_text()
    for host in these:
        wait_for(host, booted, f"does not boot: `docker logs {host.name}`")
        put = "install -o ops -g ops -m 0600 /dev/stdin /home/ops/.ssh/authorized_keys"
        capture(["docker", "exec", "-i", host.name, "sh", "-c", put], stdin=public)
        key = capture(["docker", "exec", host.name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).split()
        known[host.address] = f"{host.address} {key[0]} {key[1]}"
    replace(KNOWN_HOSTS, (f"{line}\n" for line in known.values()))
    write_ssh_config(hosts(containers()))
    for host in these:
        wait_for(host, lets_in, f"does not let the lab's key in: `docker exec {host.name} journalctl -u ssh`")


def wait_for(host: Host, ready: Callable[[Host], bool], complaint: str) -> None:
    """Wait until a host is ready."""
    wait_until(lambda: ready(host), f"{host.name} {complaint}", BOOT_TIMEOUT)


def booted(host: Host) -> bool:
    """Return whether sshd runs on the host and logins are allowed."""
    units = ["ssh.service", "multi-user.target"]
    return succeeds(["docker", "exec", host.name, "systemctl", "is-active", "--quiet", *units])


def lets_in(host: Host) -> bool:
    """Return whether the host accepts the lab's key."""
    return succeeds(["ssh", "-F", SSH_CONFIG, "-o", "ConnectTimeout=5", host.name, "true"])


def write_ssh_config(these: Iterable[Host]) -> None:
    """Make `ssh -F .cache/lab/ssh_config dev-1` work."""
    # ssh expands %h and the like in paths.
    key, known, sockets = (str(path).replace("%", "%%") for path in (KEY, KNOWN_HOSTS, CONTROL_SOCKETS))
    common = f'  User ops\n  IdentityFile "{key}"\n  IdentitiesOnly yes\n  BatchMode yes\n'
    common += f'  StrictHostKeyChecking yes\n  UserKnownHostsFile "{known}"\n'
    # Share the connections that Ansible keeps open for the inventory: one login serves many commands.
    common += f'  ControlMaster auto\n  ControlPath "{sockets}/%h"\n  ControlPersist 10m\n'
    replace(SSH_CONFIG, (f"Host {host.name}\n  HostName {host.address}\n{common}" for host in these))


def replace(path: Path, parts: Iterable[str]) -> None:
    """Write a file that others may be reading."""
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(parts))
    new.replace(path)


def forget_connections(addresses: Iterable[str]) -> None:
    """Close the SSH connections that are kept open: their hosts may be gone. They are named by address."""
    for socket in (CONTROL_SOCKETS / address for address in addresses):
        subprocess.run(["ssh", "-o", f'ControlPath="{socket}"', "-O", "exit", "lab"], capture_output=True, check=False)
        socket.unlink(missing_ok=True)


def remove() -> None:
    """Remove the lab's hosts with their volumes, and its network."""
    forget_connections(socket.name for socket in CONTROL_SOCKETS.glob("*"))
    names = capture(["docker", "ps", "-aq", "--filter", f"label={LABEL}"]).split()
    if names:
        logged(["docker", "rm", "--force", "--volumes", *names])
    if capture(["docker", "network", "ls", "-q", "--filter", f"name=^{NETWORK}$"]).strip():
        logged(["docker", "network", "rm", NETWORK])


def remove_scenario(name: str) -> None:
    """Remove a scenario's hosts with their volumes, and its network."""
    label = f"label=metalworks.scenario={name}"
    if containers := capture(["docker", "ps", "-aq", "--filter", label]).split():
        logged(["docker", "rm", "--force", "--volumes", *containers])
    if networks := capture(["docker", "network", "ls", "-q", "--filter", label]).split():
        logged(["docker", "network", "rm", *networks])


def main() -> None:
    """Run the verb: molecule calls `authorize`, `make lab-host` calls `add`."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="create or start what is missing")
    verbs.add_parser("authorize", help="authorize the lab's key on all hosts")
    adding = verbs.add_parser("add", help="add a host")
    adding.add_argument("name")
    adding.add_argument("address", help="in 198.51.100.0/24")
    arguments = parser.parse_args()
    if arguments.verb == "add":
        host = Host(arguments.name, arguments.address)
        add(host)
        options = f"NAME={host.name} ADDRESS={host.address} GROUP=cpu"
        print(f"{host.name} is up: `make add-host {options}`, with the group that you want, adds it to the inventory")
    elif arguments.verb == "up":
        print(f"hosts: {up()}")
    else:
        authorize(hosts(containers()))


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
