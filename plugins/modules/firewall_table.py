#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Load a table of nftables into the kernel and into its file, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_table
short_description: Load a table of nftables, and take it back unless a second call confirms it
description:
  - Manages the table C(inet metalworks) in the kernel and in C(/etc/nftables.conf).
  - Loads the rules into a network namespace first. Rules that the kernel refuses change nothing; accepted rules are
    compared with the table in use.
  - Starts a timer that restores the old table, then replaces the table in one step. A second call with O(confirm),
    over a new connection, stops the timer and writes the file that is loaded at boot.
  - Without O(rules), updates only the addresses of the platform's hosts, and only where such a table exists.
  - Creates users that the rules name, so that a program has its limits before its first start.
options:
  rules:
    type: str
    default: ""
    description: Rules without the elements of their sets. C(@uid:NAME@) becomes the number of that user.
  platform:
    type: list
    elements: str
    required: true
    description: Addresses, networks or names of the platform's hosts.
  sets: {type: dict, default: {}, description: 'More sets of the rules, each with its addresses, networks or names.'}
  rollback_seconds: {type: int, default: 120, description: Seconds to wait for the confirmation.}
  confirm: {type: bool, default: false, description: Whether to keep the rules that are loaded.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Load the rules
  metalworks.platform.firewall_table:
    rules: "{{ lookup('ansible.builtin.template', 'rules.nft.j2') }}"
    platform: [192.0.2.0/24]
  register: firewall

- name: Open a new connection
  when: firewall.unconfirmed
  ansible.builtin.meta: reset_connection

- name: Confirm the rules
  when: firewall.unconfirmed
  metalworks.platform.firewall_table:
    rules: "{{ lookup('ansible.builtin.template', 'rules.nft.j2') }}"
    platform: [192.0.2.0/24]
    confirm: true
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
unconfirmed:
  type: bool
  returned: success
  description: Whether the old rules come back unless the new ones are confirmed.
"""

import ipaddress
import json
import pwd
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import diff, read, replace
from ..module_utils.system_user import ensure_system_user

TABLE = "inet metalworks"
CONFIGURATION = Path("/etc/nftables.conf")
BEFORE = Path("/run/metalworks/firewall-before.nft")
TIMER = "metalworks-firewall-rollback"
REPLACE = f"table {TABLE}\ndelete table {TABLE}\n"
MARK = "# Who belongs to the platform.\n"
# When Debian's unit stops or restarts, it flushes all tables, including Docker's.
DROP_IN = Path("/etc/systemd/system/nftables.service.d/metalworks.conf")
DROP_IN_TEXT = f"[Service]\nExecStop=\nExecStop=-/usr/sbin/nft delete table {TABLE}\n"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def resolve(name: str) -> Iterable[str]:
    """Return the addresses of a host's name; raises OSError when there are none."""
    return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}


def networks(names: list[str], look_up: Callable[[str], Iterable[str]] = resolve) -> list[Network]:
    """Return the networks of these addresses, networks and names; raises OSError for an unknown name."""
    found: set[Network] = set()
    for name in names:
        try:
            found.add(ipaddress.ip_network(name, strict=False))
        except ValueError:
            found |= {ipaddress.ip_network(address.partition("%")[0]) for address in look_up(name)}
    return sorted(found, key=lambda one: (one.version, one))


def members(name: str, found: list[Network]) -> str:
    """Return the lines that fill the two sets of this name, one for each IP version."""
    lines = []
    for version in (4, 6):
        if ours := [str(one) for one in found if one.version == version]:
            lines.append(f"add element {TABLE} {name}{version} {{ {', '.join(ours)} }}\n")
    return "".join(lines)


def numbered(rules: str, number: Callable[[str], int]) -> str:
    """Return the rules with UIDs in place of user names: nft rejects a table with an unknown name."""
    return re.sub(r"@uid:([^@]+)@", lambda user: str(number(user[1])), rules)


def normal(value: Any) -> Any:
    """Return a listing without the parts that differ between two loads of the same rules."""
    if isinstance(value, list):
        return [normal(one) for one in value if not (isinstance(one, dict) and "metainfo" in one)]
    if isinstance(value, dict):
        kept = {key: normal(one) for key, one in value.items() if key != "handle"}
        for key in kept.keys() & {"set", "elem"}:  # their order is random
            if isinstance(kept[key], list):
                kept[key] = sorted(kept[key], key=lambda one: json.dumps(one, sort_keys=True))
        return {"counter": None} if "counter" in kept else kept
    return value


def sets(listing: Any) -> list[Any]:
    """Return the sets of a listing."""
    return [one for one in (listing or {}).get("nftables", []) if "set" in one]


def has_rules(text: str) -> bool:
    """Tell whether a file contains rules, unlike Debian's, which accepts everything."""
    return bool(re.search(r"\b(accept|drop|reject|dnat|snat|masquerade|include)\b", re.sub(r"#.*", "", text)))


class Firewall:
    """The table, and the module that acts on it."""

    NOBODY = 65534

    def __init__(self, module: HostModule, nft: str) -> None:
        """Keep the module and the path of nft."""
        self.module, self.nft = module, nft
        self.actions, self.diff = list[str](), list[dict[str, str]]()

    def fail(self, reason: str) -> None:
        """End the task with the reason."""
        self.module.fail_json(msg=reason, actions=self.actions)

    def act(self, action: str) -> bool:
        """Record an action; tell whether to carry it out."""
        self.actions.append(action)
        return not self.module.check_mode

    def run(self, *command: str, data: str = "") -> str:
        """Run a command and return its output; a failure ends the task."""
        code, out, err = self.module.run_command(list(command), data=data)
        if code:
            self.fail(f"{' '.join(command)}: {(err or out).strip()}")
        return str(out)

    def live(self) -> Any:
        """Return the table in the kernel, or None."""
        code, out, _ = self.module.run_command([self.nft, "--json", "list", "table", *TABLE.split()])
        return normal(json.loads(out)) if code == 0 else None

    def tried(self, text: str) -> Any:
        """Return the rules as the kernel lists them, loaded into a separate network namespace."""
        script = f'"$0" --file - && "$0" --json list table {TABLE}'
        code, out, err = self.module.run_command(["unshare", "--net", "sh", "-c", script, self.nft], data=text)
        if code:
            self.fail(f"nft rejects the rules; the old ones stay in force:\n{err or out}")
        return normal(json.loads(out))

    def counting_down(self) -> bool:
        """Tell whether the rollback timer is running."""
        return bool(self.module.run_command(["systemctl", "is-active", "--quiet", f"{TIMER}.timer"])[0] == 0)

    def load(self, text: str, seconds: int) -> None:
        """Start the timer that restores the old table, then replace the table."""
        self.run(self.nft, "--check", "--file", "-", data=text)
        if self.counting_down():  # from a killed play; the table from before that play is still the one to restore
            self.run("systemctl", "stop", f"{TIMER}.timer")
        else:
            earlier = self.module.run_command([self.nft, "list", "table", *TABLE.split()])[1]
            replace(BEFORE, f"{REPLACE}{earlier}", 0o600)
        arm = ["systemd-run", "--quiet", "--collect", f"--unit={TIMER}", f"--on-active={seconds}"]
        self.run(*arm, "--timer-property=AccuracySec=1s", self.nft, "--file", str(BEFORE))
        self.run(self.nft, "--file", "-", data=text)

    def store(self, text: str) -> None:
        """Write the file that is loaded at boot."""
        old = read(CONFIGURATION)
        if old == text and CONFIGURATION.stat().st_mode & 0o777 == 0o644:
            return
        self.diff.append(diff(CONFIGURATION, old, text))
        if not self.act(f"write {CONFIGURATION}"):
            return
        if MARK not in old and has_rules(old):
            kept = self.module.backup_local(str(CONFIGURATION))
            self.module.warn(
                f"{CONFIGURATION} held other rules, which are no longer loaded at boot; a copy is in {kept}"
            )
        replace(CONFIGURATION, text)

    def user(self, name: str) -> int:
        """Return the user's UID; create a missing user, or in check mode return an unused UID."""
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            self.actions.append(f"create user {name}")
            ensure_system_user(self.module, name)
        return self.NOBODY - len(self.actions) if self.module.check_mode else pwd.getpwnam(name).pw_uid

    def serve(self) -> None:
        """Enable and start the unit that loads the file at boot."""
        if read(DROP_IN) != DROP_IN_TEXT and self.act(f"write {DROP_IN}"):
            replace(DROP_IN, DROP_IN_TEXT)
            self.run("systemctl", "daemon-reload")
        names = "ActiveState,UnitFileState"
        shown = self.run("systemctl", "show", "nftables.service", "--property", names).splitlines()
        for line, verb in (("UnitFileState=enabled", "enable"), ("ActiveState=active", "start")):
            if line not in shown and self.act(f"{verb} nftables.service"):
                self.run("systemctl", "--quiet", verb, "nftables.service")

    def converge(self, text: str, seconds: int, confirm: bool) -> bool:
        """Load and store these rules; tell whether they wait for a confirmation."""
        wanted = self.tried(text)
        if confirm and self.counting_down():
            self.run("systemctl", "stop", f"{TIMER}.timer")
        same = self.live() == wanted
        if confirm and not same:
            self.fail("the new rules were not confirmed in time and the host restored the old ones; run the play again")
        if not same and self.act("replace the rules"):
            self.load(text, seconds)
            return True
        if not self.module.check_mode and self.counting_down():
            return True
        self.store(text)
        self.serve()
        return False

    def register(self, platform: str) -> None:
        """Update the set of the platform's addresses, and nothing else."""
        old = read(CONFIGURATION)
        head, mark, filled = old.partition(MARK)
        if not mark:
            return
        others = [line for line in filled.splitlines(keepends=True) if f" {TABLE} platform" not in line]
        text = "".join([head, mark, *others, platform])
        wanted, live = self.tried(text), self.live()
        self.store(text)
        if live and sets(live) != sets(wanted) and self.act("change the platform's addresses"):
            empty = "".join(f"flush set {TABLE} platform{version}\n" for version in (4, 6))
            self.run(self.nft, "--file", "-", data=f"{empty}{platform}")


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={
            "rules": {"type": "str", "default": ""},
            "platform": {"type": "list", "elements": "str", "required": True},
            "sets": {"type": "dict", "default": {}},
            "rollback_seconds": {"type": "int", "default": 120},
            "confirm": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wants = module.params
    nft = module.get_bin_path("nft", opt_dirs=["/usr/sbin"])
    if nft is None:
        if wants["rules"] and not module.check_mode:
            module.fail_json(msg="nftables is not installed; install the package and run again")
        module.exit_json(changed=bool(wants["rules"]), actions=[], unconfirmed=False)
    filled = ""
    for name, names in {**wants["sets"], "platform": wants["platform"]}.items():
        try:
            filled += members(name, networks(names))
        except OSError as error:
            module.fail_json(msg=f"this host cannot resolve every name in {', '.join(names)}: {error}")
    firewall, unconfirmed = Firewall(module, nft), False
    if wants["rules"]:
        text = f"{numbered(wants['rules'], firewall.user)}{MARK}{filled}"
        unconfirmed = firewall.converge(text, wants["rollback_seconds"], wants["confirm"])
    else:
        firewall.register(filled)
    actions = firewall.actions
    module.exit_json(changed=bool(actions), actions=actions, diff=firewall.diff, unconfirmed=unconfirmed)


if __name__ == "__main__":
    main()
