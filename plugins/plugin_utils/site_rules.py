"""Rules for a site, as pure functions: data in, problems out. The action plugins collect the data and print them."""

from __future__ import annotations

import difflib
import fnmatch
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
SECRET = re.compile(r"\b(vault_\w+)\b(?!\s*(?:\|\s*default\b|is\s+(?:not\s+)?defined))")
UNDEFINED = re.compile(r"'(\w+)' is undefined")
SETTING = re.compile(r"^([a-z_][a-z0-9_]*)\s*:", re.MULTILINE)
NEAR = 0.84  # difflib's ratio from which one name counts as a misspelling of the other


class Problem(NamedTuple):
    """One problem: the host or variable, what is wrong with it, and what to do."""

    where: str
    what: str
    cure: str


def report(problems: Sequence[Problem]) -> str:
    """Return a numbered list of problems, each with its remedy on the next line."""
    head = f"{len(problems)} problem{'s' * (len(problems) != 1)} found; no host was changed."
    return "\n".join([head, *(f"{n:>3}. {p.where}: {p.what}.\n     {p.cure}" for n, p in enumerate(problems, 1))])


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the name that `name` is probably a misspelling of, or an empty string."""
    return next(iter(difflib.get_close_matches(name, sorted(names), n=1, cutoff=NEAR)), "")


# -- Inventory


def empty_groups(groups: Mapping[str, Sequence[str]], required: Iterable[str], home: str) -> list[Problem]:
    """Report required groups without a host, all as one problem."""
    empty = [f"`{name}`" for name in required if not groups.get(name)]
    if not empty:
        return []
    where = f"group {empty[0]}" if len(empty) == 1 else f"groups {', '.join(empty)}"
    cure = f"List a host under `{home}` in hosts.yml; groups.yml adds it to the groups that every site needs"
    return [Problem(where, "has no host" if len(empty) == 1 else "have no host", cure)]


def crowded_groups(groups: Mapping[str, Sequence[str]], single: Iterable[str]) -> list[Problem]:
    """Report a second host in a group whose role runs on one host."""
    return [
        Problem(
            f"group `{name}`",
            f"contains {', '.join(groups[name])}, but its role runs on one host",
            f"Choose one: in groups.yml, list that host under `hosts:` of `{name}`, in place of `children:`",
        )
        for name in single
        if len(groups.get(name, ())) > 1
    ]


def stray_hosts(groups: Mapping[str, Sequence[str]], homes: Sequence[str]) -> list[Problem]:
    """Report hosts that are in none of the platform's groups: usually a group's name is misspelt."""
    placed = {host for home in homes for host in groups.get(home, ())}
    found = []
    for host in groups.get("all", ()):
        if host in placed or host == "localhost":
            continue
        theirs = [name for name, hosts in groups.items() if host in hosts and name not in ("all", "ungrouped")]
        meant = next(filter(None, (did_you_mean(name, set(groups) - {name}) for name in theirs)), "")
        cure = f"Did you mean group `{meant}`?" if meant else "List the host under `services`, `gpu`, `cpu` or `dev`"
        listed = ", ".join(f"`{name}`" for name in theirs)
        what = f"is only in {listed}, outside the platform's groups" if theirs else "is in no group"
        found.append(Problem(f"host {host}", what, cure))
    return found


def is_address(text: str) -> bool:
    """Tell whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def in_yaml(address: str) -> str:
    """Return an address as it is written in hosts.yml: YAML would take some with colons for a mapping."""
    return f'"{address}"' if ":" in address else address


def bad_host_names(hosts: Iterable[str]) -> list[Problem]:
    """Report host names that cannot be used in a URL, in /etc/hosts, or as the name in a certificate."""
    found = []
    for host in hosts:
        if is_address(host):
            what = "is named by its address, and nginx verifies other hosts' certificates by names only"
            cure = f"Give the host a name in hosts.yml, such as `cpu-1: {{ansible_host: {in_yaml(host)}}}`"
            found.append(Problem(f"host {host}", what, cure))
        elif not HOST_NAME.fullmatch(host):
            what = "is not a valid host name; use only lower-case letters, digits, dots, and hyphens inside a word"
            cure = "Rename the host in hosts.yml and set its address as ansible_host"
            found.append(Problem(f"host {host}", what, cure))
    return found


def bad_address(host: str, address: str, seen: Mapping[str, Any], others: Iterable[str] = ()) -> list[Problem]:
    """Report an address by which the other hosts cannot reach this one.

    `seen` is the host's own answer: whether it `has` the address, and the addresses of its default routes as `routed`,
    one for each IP version. The advice names the one whose version the platform's `others` have.
    """
    if not is_address(address):
        what = (
            f"has no IP address in the inventory, only the name `{address}`; firewalls and /etc/hosts need an address"
        )
    elif ipaddress.ip_address(address).is_link_local:
        what = f"has the link-local address {address}, which means another host on each network"
    elif not seen["has"]:
        what = f"does not have the address {address} itself, so the other hosts would refuse its connections"
    else:
        return []
    theirs = next((ipaddress.ip_address(one).version for one in others if is_address(one)), 4)
    routed = sorted(seen["routed"], key=lambda one: ipaddress.ip_address(one).version != theirs)
    example = in_yaml(next(iter(routed), "10.0.0.11"))
    cure = f"Add the address by which the other hosts reach it to its line in hosts.yml: `platform_address: {example}`"
    return [Problem(f"host {host}", what, cure)]


def shared_addresses(addresses: Mapping[str, str]) -> list[Problem]:
    """Report hosts that share an address: the platform would configure one machine twice."""
    owners: dict[str, list[str]] = {}
    for host, address in addresses.items():
        owners.setdefault(address, []).append(host)
    return [
        Problem(
            f"hosts {' and '.join(hosts)}",
            f"have the same address, {address}",
            "Correct the ansible_host of one. If they are one machine, list it under one name in all groups",
        )
        for address, hosts in owners.items()
        if len(hosts) > 1
    ]


def mixed_addresses(addresses: Mapping[str, str]) -> list[Problem]:
    """Report a platform with hosts of both IP versions: firewalls know a host by one address."""
    hosts: dict[int, list[str]] = {}
    for host, address in addresses.items():
        if is_address(address):
            hosts.setdefault(ipaddress.ip_address(address).version, []).append(host)
    if len(hosts) < 2:
        return []
    what = f"have IPv4 addresses ({', '.join(hosts[4])}) and IPv6 addresses ({', '.join(hosts[6])})"
    cure = "Set platform_address of each to an address of the same IP version"
    return [Problem("hosts", f"{what}, but firewalls know a host by one address", cure)]


# -- Variables


def settings(text: str) -> set[str]:
    """Return the top-level names in the text of a variables file."""
    return set(SETTING.findall(text))


def unknown_variables(
    names: Iterable[str],
    known: set[str],
    prefixes: Sequence[str],
    choices: set[str],
    renamed: Mapping[str, str],
    origin: Callable[[str], str],
) -> list[Problem]:
    """Report variables that nothing reads: renamed ones, unknown ones with a role's prefix, misspelt choices."""
    found = []
    for name in sorted(set(names) - known):
        meant = did_you_mean(name, known if name.startswith(tuple(prefixes)) else choices)
        if name in renamed:
            what, cure = "was renamed", f"Use `{renamed[name]}`"
        elif meant:
            what, cure = "is not a variable of the platform", f"Did you mean `{meant}`?"
        elif name.startswith(tuple(prefixes)):
            what, cure = "is not a variable of the platform", "Remove it; docs/roles.md lists each role's variables"
        else:
            continue
        found.append(Problem(f"variable `{name}`{origin(name)}", what, cure))
    return found


def referenced_secrets(files: Iterable[Path]) -> dict[str, str]:
    """Return vault_x → name of the file that needs it, whatever the site's choices."""
    found: dict[str, str] = {}
    for path in files:
        for line in path.read_text().splitlines():
            if not line.lstrip().startswith("#") and " if " not in line:
                found.update({name: found.get(name, path.name) for name in SECRET.findall(line)})
    return found


def missing_secrets(
    needed: Mapping[str, str], secrets: Mapping[str, Any], absent: Mapping[str, Sequence[str]], cure: str
) -> list[Problem]:
    """Report missing and empty secrets: a misspelt one alone, all others together, because one command adds them.

    `needed` maps names to the file that needs each. `absent` has the missing ones with the keys that they lack, or none
    if they are missing altogether.
    """
    found, rest = [], {}
    for name, keys in absent.items():
        near = "" if name in secrets else did_you_mean(name, {key for key in secrets if key not in needed})
        if near:
            what = f"is not defined, but {needed[name]} needs it"
            found.append(Problem(f"secret `{name}`", what, f"Rename `{near}` to `{name}`"))
        else:
            rest[name] = keys
    if rest and not any(secrets.get(name) for name in needed):
        return [*found, Problem("secrets", f"none of the {len(rest)} that the platform needs is set", cure)]
    named = [f"`{name}`" + (f" (for {', '.join(keys)})" if keys else "") for name, keys in rest.items()]
    if len(named) == 1:
        (name, keys), *_ = rest.items()
        lacks = "is empty" if name in secrets else f"is not defined, but {needed[name]} needs it"
        what = f"has no key for {', '.join(keys)}" if keys else lacks
        found.append(Problem(f"secret `{name}`", what, cure))
    elif named:
        found.append(Problem("secrets", f"{len(named)} are missing or empty: {', '.join(named)}", cure))
    return found


def duplicates(what: str, values: Iterable[Any]) -> list[Problem]:
    """Report values that occur more than once in a list."""
    seen: set[Any] = set()
    twice: set[Any] = set()
    for value in values:
        (twice if value in seen else seen).add(value)
    cure = "Give each entry a different value"
    return [Problem(f"variable {what}", f"contains {value} more than once", cure) for value in sorted(twice)]


def queue_order(queues: Any, variable: str) -> list[Problem]:
    """Report priorities that do not give an order."""
    return duplicates(f"`{variable}`", queues.values() if isinstance(queues, Mapping) else ())


def pools_without_a_limit(limits: Any, groups: Mapping[str, Sequence[str]], variable: str) -> list[Problem]:
    """Report pools with hosts for which the site, which sets all limits at once, sets none."""
    held = limits if isinstance(limits, Mapping) else {}
    return [
        Problem(f"variable `{variable}`", f"has no limit for the pool {pool}", f"Set `{pool}` too, such as `{pool}: 1`")
        for pool in ("gpu", "cpu")
        if groups.get(pool) and held and pool not in held
    ]


def domain_of_a_host(domain: str, below: Iterable[str], hosts: Iterable[str]) -> list[Problem]:
    """Report hosts that have one of the platform's own names: a name leads to one address."""
    ours = {domain, *(f"{name}.{domain}" for name in below)}
    cure = "Choose a domain of its own, such as ml.example.org, or rename the host in hosts.yml"
    return [
        Problem("variable `platform_domain`", f"gives the platform the name {host}, which a host has already", cure)
        for host in hosts
        if host in ours
    ]


def strangers(names: Iterable[Any], people: Iterable[Any], variable: str, where: str) -> list[Problem]:
    """Report names that are not those of people."""
    known = {one["name"] for one in people if isinstance(one, Mapping) and "name" in one}
    found = []
    for name in sorted({str(one) for one in names} - {str(one) for one in known}):
        meant = did_you_mean(name, {str(one) for one in known})
        cure = f"Did you mean `{meant}`?" if meant else f"Add the person to {where}, or remove the name"
        found.append(Problem(f"variable `{variable}`", f"names {name}, who is not in {where}", cure))
    return found


def contradicting_services(services: Iterable[Mapping[str, Any]], variable: str) -> list[Problem]:
    """Report aliases of services that MLflow or the service would refuse."""
    return [
        Problem(f"variable `{variable}`, service {service['name']}", what, cure)
        for service in services
        for what, cure in _alias_faults(service)
    ]


def _alias_faults(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    found, canary = [], service.get("canary") or {}
    aliases = {"alias": service.get("alias", "champion"), "shadow": service.get("shadow") or None}
    aliases["canary.alias"] = canary.get("alias", "canary") if canary else None
    for (first, one), (second, other) in itertools.combinations(aliases.items(), 2):
        if one and one == other:
            cure = "Choose different aliases: a version cannot be compared with itself"
            found.append((f"uses `{one}` as both {first} and {second}", cure))
    for option, alias in aliases.items():
        if alias and re.fullmatch(r"latest|v\d+", str(alias), re.IGNORECASE):
            found.append((f"sets {option} to {alias}, a name that MLflow reserves", "Choose another alias"))
    return found


def unreadable_ca_files(paths: Iterable[str], variable: str) -> list[Problem]:
    """Report CA files that the controller cannot read or that contain no certificate."""
    found = []
    for path in paths:
        try:
            fault = "" if "-----BEGIN CERTIFICATE-----" in Path(path).read_text() else "contains no PEM certificate"
        except (OSError, UnicodeDecodeError) as error:
            fault = f"cannot be read ({getattr(error, 'strerror', None) or 'it is not text; is it DER?'})"
        if not Path(path).is_absolute():
            fault = "is not an absolute path"
        if fault:
            cure = "List absolute paths of PEM files on the controller; openssl x509 -in FILE -out FILE.pem converts"
            found.append(Problem(f"variable `{variable}`", f"{path} {fault}", cure))
    return found


def unresolved(found: Mapping[tuple[str, str], Sequence[str]], reported: Iterable[str]) -> list[Problem]:
    """Report variables that cannot be computed, except where a name in `reported` is the cause.

    `found` maps (variable, reason) to hosts, or to none if it is so on all of them.
    """
    known = set(reported)
    problems = []
    for (variable, reason), hosts in found.items():
        missing = UNDEFINED.search(reason)
        if missing and missing[1] in known:
            continue
        cure = f"Set `{missing[1]}`" if missing else "Correct it, or a variable that it uses,"
        cure += " in the inventory's group_vars"
        if missing and missing[1].startswith("vault_"):  # as after an upgrade to a release with another secret
            cure = (
                "Run `make secrets INVENTORY=inventory/<site>`. If that does not add it, somebody else issues it: "
                f"put `{missing[1]}` into the vault"
            )
        where = f"variable `{variable}`" + (f" of {', '.join(hosts)}" if hosts else "")
        problems.append(Problem(where, f"cannot be computed ({reason})", cure))
    return problems


# -- Hosts, from the results of validate_host


def unreachable(host: str, address: str, reason: str) -> Problem:
    """Return the problem of a host that did not answer, with how to investigate."""
    reason = reason.rpartition("over ssh: ")[2] or reason  # Ansible puts the same text before every reason
    return Problem(
        f"host {host}",
        f"cannot be reached at {address} ({reason.rstrip('.')})",
        f"Check that it is up, then try `ansible -m ping {host}` with the same inventory. ansible_host sets the "
        "address, ansible_user the account and ansible_ssh_private_key_file the key",
    )


def unusable(host: str, reason: str) -> Problem:
    """Return the problem of a host that answers, but on which Ansible cannot run."""
    return Problem(
        f"host {host}",
        f"answers, but Ansible cannot run on it: {reason}",
        "Give the account passwordless sudo (or run with --ask-become-pass), and check that the Python in "
        "ansible_python_interpreter is installed",
    )


def unsupported_system(host: str, facts: Mapping[str, Any], supported: Mapping[str, Sequence[Any]]) -> list[Problem]:
    """Report a distribution or version that the roles do not support."""
    name = str(facts["distribution"])
    version = str(facts["distribution_version"] if name == "Ubuntu" else facts["distribution_major_version"])
    if version in map(str, supported.get(name, ())):
        return []
    choice = "; ".join(f"{key} {', '.join(map(str, versions))}" for key, versions in supported.items())
    return [Problem(f"host {host}", f"runs {name} {version}, which is not supported", f"Install one of: {choice}")]


def old_python(host: str, python: Sequence[int], minimum: Sequence[int]) -> list[Problem]:
    """Report a host whose Python is too old for the platform's environments."""
    if tuple(python) >= tuple(minimum):
        return []
    has, needs = (".".join(map(str, version)) for version in (python, minimum))
    cure = "Install a newer Python and set ansible_python_interpreter to its path"
    return [Problem(f"host {host}", f"has Python {has}; at least {needs} is needed", cure)]


def too_small(
    host: str, facts: Mapping[str, Any], disks: Mapping[str, Mapping[str, int]], need: Mapping[str, Any]
) -> list[Problem]:
    """Report a host with less memory or disk than its groups need."""
    found = []
    if facts["memtotal_mb"] < need["memory_mb"]:
        what = f"has {facts['memtotal_mb']} MB of memory; {need['group']} needs {need['memory_mb']} MB"
        found.append(Problem(f"host {host}", what, "Add memory, or move one of its groups to another host"))
    filesystems = {tuple(disk.values()): (path, disk) for path, disk in reversed(list(disks.items()))}
    for path, disk in filesystems.values():
        if disk["size_mb"] < need["disk_mb"]:
            what = f"has a disk of {disk['size_mb']} MB under {path}; {need['group']} needs {need['disk_mb']} MB"
            found.append(Problem(f"host {host}", what, f"Mount a larger disk at {path}"))
        elif disk["free_mb"] < need["free_mb"]:
            what = f"has {disk['free_mb']} MB free under {path}; {need['free_mb']} MB are needed for the installation"
            cure = f"Free some space; `du -xh {path} | sort -h | tail` lists the largest directories"
            found.append(Problem(f"host {host}", what, cure))
    return found


def missing_device(host: str, devices: int, wanted: bool) -> list[Problem]:
    """Report a GPU host without a device, unless the site allows that."""
    if devices or not wanted:
        return []
    cure = "Look with `lspci -d 10de:`. To go without, move the host out of `gpu` or set nvidia_require_device: false"
    return [Problem(f"host {host}", "is in group `nvidia` but has no NVIDIA device", cure)]


def missing_engine(host: str, docker: bool, runtimes: Mapping[str, str]) -> list[Problem]:
    """Report a host without a Docker engine whose programs should run in it."""
    wanting = [name for name, runtime in runtimes.items() if runtime == "docker"]
    if docker or not wanting:
        return []
    what = f"has no Docker engine that runs, as wanted by {' and '.join(wanting)}"
    cure = "Put the host into the group `docker_engine`, or set server_runtime to podman or native"
    return [Problem(f"host {host}", what, cure)]


def earlier_software(
    host: str, seen: Mapping[str, Any], groups: Iterable[str], accepted: Iterable[str], drivers: Iterable[str]
) -> list[Problem]:
    """Report software of others that the platform would replace, except what the site lets it take over.

    `drivers` has the versions of NVIDIA's driver that the platform installs; empty for those of the distribution.
    """
    found, groups = [], set(groups)
    where, line = f"host {host}", "to its line in hosts.yml"
    if "gateway" in groups and seen["nginx"] and "nginx" not in accepted:
        what = f"has an nginx of its own ({', '.join(seen['nginx'])}), which the platform's gateway would replace"
        cure = (
            f"Move its sites to another host, or add `take_over: [nginx]` {line}: then nginx serves the platform alone"
        )
        found.append(Problem(where, what, f"{cure}, and these sites stay as files that nothing uses"))
    for path in seen["units"]:
        unit = path.rpartition("/")[2]
        what = f"has a unit {unit} of its own ({path}), which the platform would replace"
        found.append(
            Problem(where, what, f"Rename it there, after `systemctl disable --now {unit}`, or use another host")
        )
    if "nvidia" in groups and seen["run_files"]:
        what = f"has a driver from NVIDIA's .run file ({', '.join(seen['run_files'])}), which packages cannot replace"
        cure = "Run `sudo nvidia-uninstall` there if it is one of these files, remove what is left of them, and reboot"
        found.append(Problem(where, what, cure))
    other = [
        f"{name} {version}"
        for name, version in seen["driver"].items()
        if drivers and not version.startswith(tuple(f"{one}-" for one in drivers))
    ]
    if "nvidia" in groups and other:
        what = f"has an NVIDIA driver of another version ({', '.join(other)}), which somebody else installed"
        names = " ".join(one.partition(" ")[0] for one in other)
        cure = f"Run `sudo apt-get purge --autoremove {names}` there, and reboot; or use another host"
        found.append(Problem(where, what, cure))
    return found


KEPT_CLUSTER = re.compile(r"before_\d+|undone|main\.before-restore")
"""Clusters that upgrade_postgresql.yml and restore.yml keep, stopped, for a way back."""


def earlier_clusters(
    host: str, clusters: Iterable[Mapping[str, Any]], version: str, accepted: Iterable[str]
) -> list[Problem]:
    """Report clusters of PostgreSQL that the platform, which runs one named main, would take over or stumble over."""
    where, line = f"host {host}", "to its line in hosts.yml"
    clusters = [cluster for cluster in clusters if not KEPT_CLUSTER.fullmatch(cluster["name"])]
    others = [f"{cluster['version']}/{cluster['name']}" for cluster in clusters if cluster["version"] != version]
    if others:
        what = f"has PostgreSQL data of another version ({', '.join(others)}); the platform would install {version}"
        stay = f'add `postgresql_version: "{others[0].partition("/")[0]}"` {line} to stay with it'
        cure = f"Run playbooks/upgrade_postgresql.yml, which upgrades the data of a cluster main, or {stay}"
        return [Problem(where, what, cure)]
    main = next((cluster for cluster in clusters if cluster["name"] == "main"), None)
    if clusters and not main:
        what = f"has PostgreSQL {version} without a cluster named main, which the platform would use"
        return [Problem(where, what, f"Create it there: `sudo pg_createcluster {version} main`")]
    if not main or main["ours"] or "postgresql" in accepted or not (main["databases"] or main["hba_lines"]):
        return []
    counts = {"database": main["databases"], "line of pg_hba.conf": main["hba_lines"]}
    held = " and ".join(_counted(number, noun) for noun, number in counts.items() if number)
    what = f"has a PostgreSQL cluster of its own, {version}/main, with {held}; the platform would use it"
    cure = f"Move it to another host, or add `take_over: [postgresql]` {line}: then its databases stay"
    rest = "but settings and pg_hba.conf are the platform's; postgresql_hba_lines lets other logins in"
    return [Problem(where, what, f"{cure}, {rest}")]


def _counted(number: int, noun: str) -> str:
    """Return a number and a noun, whose first word takes the plural's s."""
    first, blank, rest = noun.partition(" ")
    return f"{number} {first}{'s' * (number != 1)}{blank}{rest}"


def strictest(groups: Iterable[str], minimums: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return the largest minimum among a host's groups, and the group that sets it."""
    need: dict[str, Any] = {"memory_mb": 0, "disk_mb": 0, "free_mb": 0, "group": ""}
    for group in groups:
        for key, value in minimums.get(group, {}).items():
            if value > need[key]:
                need |= {key: value, "group": f"group `{group}`"}
    return need


def closed_ssh_port(host: str, port: int, listeners: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Report that the firewall would keep another port open than that of the SSH server."""
    listeners = list(listeners)
    if any(listener["port"] == port for listener in listeners):
        return []
    ports = sorted({each["port"] for each in listeners if each["process"] == "sshd" or each["unit"].startswith("ssh")})
    where = f"; the SSH server listens on {' and '.join(map(str, ports))}" if ports else ""
    what = f"has no SSH server on port {port}, which the firewall would keep open{where}"
    cure = f"Add `firewall_ssh_port: {ports[0] if ports else '<port>'}` to its line in hosts.yml"
    return [Problem(f"host {host}", what, cure)]


def taken_ports(
    host: str, listeners: Iterable[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]
) -> list[Problem]:
    """Report ports of the platform on which another program listens."""
    found = []
    for want in wanted:
        for listener in listeners:
            if listener["port"] != want["port"] or fnmatch.fnmatch(listener["unit"], want["unit"]):
                continue
            holder = listener["unit"] or listener["process"] or "another program"
            stop = "Stop it there" if listener["unit"] else "Find it there and stop it"
            command = f"systemctl disable --now {holder}" if listener["unit"] else f"ss -ltnp 'sport = :{want['port']}'"
            what = f"port {want['port']}, which {re.sub(r'@?[*][^.]*', '', want['unit'])} needs, is in use by {holder}"
            move = f", or set {want['setting']} to a free port" if want["setting"] else ""
            found.append(Problem(f"host {host}", what, f"{stop} (`{command}`){move}"))
    return found


def two_on_one_port(host: str, wanted: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Report two parts of the platform that would listen on the same port of a host."""
    found = []
    for index, first in enumerate(wanted):
        for second in wanted[index + 1 :]:
            if first["port"] == second["port"]:
                what = f"{first['unit']} and {second['unit']} are both set to listen on port {first['port']}"
                cure = f"Change {' or '.join(sorted(filter(None, {first['setting'], second['setting']})))}"
                found.append(Problem(f"host {host}", what, cure))
    return found


# -- Users and secrets

SHORTEST = 16
WELL_KNOWN = (
    "password",
    "passwort",
    "changeme",
    "secret",
    "admin",
    "metalworks",
    "letmein",
    "welcome",
    "qwerty",
    "minio",
)
CLASSES = ("0-9", "a-z", "A-Z", "^0-9a-zA-Z")
LONG_OF_ONE_CLASS = 32


def names_of_the_operator(names: Sequence[str], logins: Iterable[str], variable: str) -> list[Problem]:
    """Report people who would get the account that Ansible logs in with, and with it other keys."""
    cure = "Choose another name for this person, or another account for Ansible"
    return [
        Problem(f"variable `{variable}`", f"{name} is the account that Ansible logs in with (ansible_user)", cure)
        for name in sorted(set(logins) & set(names))
    ]


def reserved_names(names: Sequence[str], taken: Iterable[str], variable: str) -> list[Problem]:
    """Report people named like an account or a group of the system, the platform or one of its machines."""
    cure = "Choose another name for this person"
    return [
        Problem(f"variable `{variable}`", f"{name} is the name of an account of the system or the platform", cure)
        for name in sorted(set(taken) & set(names))
    ]


def weakness(secret: str) -> str:
    """Return why a secret can be guessed, or an empty string; never any of the secret itself."""
    if len(secret) < SHORTEST:
        return f"is shorter than {SHORTEST} characters"
    rest = secret.lower()
    for word in WELL_KNOWN:
        rest = rest.replace(word, "")
    if len(re.sub(r"[^a-z]", "", rest)) < SHORTEST // 2 and len(rest) < len(secret):
        return "is little more than a well-known word"
    if len(set(secret)) < SHORTEST // 2:
        return "repeats few characters"
    if len(secret) < LONG_OF_ONE_CLASS and any(re.fullmatch(f"[{one}]+", secret) for one in CLASSES):
        return "uses only one kind of character"
    return ""


def weak_secrets(secrets: Mapping[str, Any], given: Iterable[str], cure: str) -> list[Problem]:
    """Report secrets that can be guessed, except those that another system gives (`given`)."""
    found = []
    for name in sorted(set(secrets) - set(given)):
        held = secrets[name]
        for holder, value in held.items() if isinstance(held, Mapping) else [("", held)]:
            # Keys and certificates are checked elsewhere; an empty secret is missing; a number is refused.
            reason = "" if not value or not isinstance(value, str) or "-----BEGIN " in value else weakness(value)
            if reason:
                where = f"secret `{name}`" + (f", key `{holder}`" if holder else "")
                found.append(Problem(where, reason, f"Remove it from the vault. {cure}"))
    return found


# -- The team's own certificates


def bad_own_certificate(
    host: str, own: Mapping[str, str], names: Iterable[str], contents: Callable[[str], bytes] | None = None
) -> list[Problem]:
    """Report a certificate of the team's that the host could not use, or that its clients would not trust.

    `contents` returns the bytes of a file; pass one that decrypts where files may be encrypted with ansible-vault.
    """
    where = f"variable `own_certificates` of {host}"
    if not own:
        return []
    if absent := [kind for kind in ("certificate", "key", "ca") if not own.get(kind)]:
        return [Problem(where, f"lacks {', '.join(absent)}", "Set the absolute paths of all three PEM files, or none")]
    read, found = {}, []
    for kind in ("certificate", "key", "ca"):
        fault, read[kind] = _own_file(kind, own[kind], contents or (lambda path: Path(path).read_bytes()))
        if fault:
            cure = "Set the absolute path of a readable PEM file on the controller; a key must have no passphrase"
            found.append(Problem(where, f"{kind} {own[kind]} {fault}", cure))
    if found:
        return found
    return [Problem(where, *fault) for fault in _own_faults(own, read["certificate"], read["key"], read["ca"], names)]


def uneven_own_certificates(own: Any, hosts: Sequence[str]) -> list[Problem]:
    """Report certificates of the team's that cover some hosts only, or use several CA files: hosts trust one CA."""
    where = "variable `own_certificates`"
    if not own:
        return []
    found = []
    if unknown := [host for host in own if host not in hosts]:
        what = f"lists {', '.join(unknown)}, not a host of the platform"
        found.append(Problem(where, what, "Correct the name or remove it"))
    if absent := [host for host in hosts if not own.get(host)]:
        what = f"lacks {', '.join(absent)}, but all hosts must share one CA"
        found.append(Problem(where, what, "List a certificate for every host, or for none"))
    if len(cas := sorted({str(files["ca"]) for files in own.values() if files.get("ca")})) > 1:
        what = f"uses several CA files: {', '.join(cas)}"
        found.append(Problem(where, what, "Put all CA certificates into one file and use it for every host"))
    return found


def _own_file(kind: str, path: str, contents: Callable[[str], bytes]) -> tuple[str, Any]:
    """Return why a file of the team's cannot be used, and its contents."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not Path(path).is_absolute():
        return "is not an absolute path", None
    try:
        text = contents(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})", None
    try:
        return "", (load_pem_private_key(text, None) if kind == "key" else x509.load_pem_x509_certificates(text))
    except (ValueError, TypeError):
        return f"contains no PEM {'private key without a passphrase' if kind == 'key' else 'certificate'}", None


def _own_faults(
    own: Mapping[str, str], chain: Sequence[Any], key: Any, cas: Sequence[Any], names: Iterable[str]
) -> list[tuple[str, str]]:
    """Return what is wrong with readable files, each with its remedy."""
    import datetime

    from cryptography import x509

    first, now, found = chain[0], datetime.datetime.now(datetime.UTC), []
    ask = "Request a newer certificate from the CA and set its path"
    if first.not_valid_after_utc < now:
        found.append((f"{own['certificate']} expired on {first.not_valid_after_utc:%Y-%m-%d}", ask))
    if first.not_valid_before_utc > now:
        what = f"{own['certificate']} is not valid before {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        found.append((what, "Wait until then, correct the controller's clock, or use another certificate"))
    if first.public_key() != key.public_key():
        what = f"{own['key']} is not the key of the first certificate in {own['certificate']}"
        found.append((what, "Use the key of the request; the host's own certificate must come first in the chain"))
    try:
        held = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        held = []
    patterns = [str(name.value).lower() for name in held]
    absent = [name for name in names if not any(_covers(pattern, name.lower()) for pattern in patterns)]
    if absent:
        what = f"{own['certificate']} is not valid for {', '.join(absent)}"
        found.append((what, f"Request one with these names in addition to {', '.join(patterns) or 'its subject'}"))
    if not _issued(chain, cas):
        what = f"{own['certificate']} does not chain to a certificate in {own['ca']}"
        found.append((what, "Append the intermediate certificates to the chain in order, or set the CA that issued it"))
    return found


def _covers(pattern: str, name: str) -> bool:
    """Tell whether a certificate's name covers this one; a star stands for the first label only."""
    try:
        return str(ipaddress.ip_address(name)) == pattern
    except ValueError:
        pass
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:]
    return pattern == name


def _issued(chain: Sequence[Any], cas: Sequence[Any]) -> bool:
    """Tell whether each certificate was issued by the next, and whether a trusted one is, or issued, the last."""

    def by(issuer: Any, issued: Any) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    links = all(by(issuer, issued) for issued, issuer in itertools.pairwise(chain))
    return links and (chain[-1] in cas or any(by(ca, chain[-1]) for ca in cas))
