"""What a host's Docker engine is like, what its daemon.json becomes, and what in it the platform refuses.

An engine is a unit `docker.service`, whatever package brought it. In daemon.json each key has one owner: the platform
has the keys that nobody else has set. What it has set is noted in `OURS`, so that it can be changed later.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .replace_file import read
from .systemctl import show
from .unix_http import SocketHandler

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

Settings = dict[str, Any]
Fault = tuple[str, str]
"""What is wrong, and what to do."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIT = "docker.service"
STARTED = "ExecMainStartTimestampMonotonic"
CONFIGURATION = Path("/etc/docker/daemon.json")
OURS = Path("/etc/metalworks/docker.json")
DATA_ROOT = "/var/lib/docker"
SOCKET = "/run/docker.sock"
SNAPS = ("snap/bin/docker", "var/lib/snapd/snap/bin/docker")
TOGETHER = ({"log-driver", "log-opts"}, {"data-root", "graph"})
"""Keys that make sense only with each other."""
RELOADED = {
    "authorization-plugins",
    "debug",
    "default-runtime",
    "features",
    "insecure-registries",
    "labels",
    "live-restore",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "registry-mirrors",
    "runtimes",
    "shutdown-timeout",
}
"""Keys that a running daemon reads again when it is reloaded."""
FLAGS = {
    "H": "hosts",
    "add-runtime": "runtimes",
    "authorization-plugin": "authorization-plugins",
    "default-address-pool": "default-address-pools",
    "g": "data-root",
    "host": "hosts",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "registry-mirror": "registry-mirrors",
}
"""Flags of the daemon whose key has another name."""
DATA = ("containers/*", "volumes/*/", "image/*/imagedb/content/sha256/*", "swarm/docker-state.json")
"""What people's data leave in a data root; an engine without any has the folders."""
OWN_INTERFACE = re.compile(r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|veth[0-9a-f]{7}")
LEAVE = "take the host out of the group docker_engine, which leaves it as it is"


# -- What is there


def flags_of(words: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of daemon.json that a daemon's command line sets, with their values."""
    found: dict[str, list[str]] = {}
    listed = list(words)
    for index, word in enumerate(listed):
        if not re.match(r"--?[a-zA-Z]", word):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--") and len(name) > 1:  # -Htcp://…
            name, equals, value = name[0], "=", name[1:] + equals + value
        following = listed[index + 1] if index + 1 < len(listed) else ""
        found.setdefault(FLAGS.get(name, name), []).append(value if equals else following)
    return found


def command_of(process: str, unit: str, options: str) -> list[str]:
    """Return the daemon's command line: of its process or, if it does not run, of its unit.

    `unit` is the property ExecStart, `options` the file that Debian's unit takes DOCKER_OPTS from.
    """
    if process:
        return process.split("\0")
    argv = re.search(r"argv\[\]=(.*?) ;", unit)
    words = shlex.split(argv[1]) if argv else []
    more = re.findall(r"^\s*DOCKER_OPTS=(.*)$", options, re.MULTILINE)
    extra = shlex.split(" ".join(shlex.split(more[-1]))) if more else []
    return [one for word in words for one in (extra if word.strip("{}$") == "DOCKER_OPTS" else [word])]


def has_data(root: Path) -> bool:
    """Tell whether images, containers or volumes are in a data root."""
    return any(next(iter(root.glob(pattern)), None) for pattern in DATA)


def loose_daemons(proc: Path) -> list[str]:
    """Return the numbers of daemons of this host that root has started without the unit."""
    found = []
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "comm").read_text().strip() != "dockerd" or process.stat().st_uid != 0:
                continue
            ours = (process / "ns/pid").readlink() == (proc / "1/ns/pid").readlink()  # not in a container
            if ours and UNIT not in (process / "cgroup").read_text():
                found.append(process.name)
    return sorted(found, key=int)


def info(socket: str = SOCKET) -> Settings:
    """Return what a running daemon says of itself; empty if it does not answer."""
    opener = urllib.request.build_opener(SocketHandler(socket))
    try:
        with opener.open("http://localhost/info", timeout=30) as answer:
            found: Settings = json.load(answer)
    except (OSError, ValueError):
        return {}
    return found


def resolvers(text: str) -> list[str]:
    """Return the addresses of the name servers in a resolv.conf."""
    return re.findall(r"^\s*nameserver\s+([0-9A-Fa-f.:]+)", text, re.MULTILINE)


def routes(listing: str) -> list[str]:
    """Return the destinations of a host's routes, without the default ones and those of Docker's networks."""
    rows = json.loads(listing or "[]")
    return [
        row["dst"] for row in rows if row["dst"] != "default" and not OWN_INTERFACE.fullmatch(str(row.get("dev", "")))
    ]


def look(module: AnsibleModule, root: Path = Path("/")) -> dict[str, Any]:
    """Return what the engine of this host is like, and what is around it."""

    def said(*command: str) -> str:
        code, out, _ = module.run_command(list(command)) if shutil.which(command[0]) else (1, "", "")
        return str(out) if code == 0 else ""

    unit = show(module, UNIT, "LoadState", "ActiveState", "UnitFileState", "MainPID", "ExecStart", STARTED)
    there = unit["LoadState"] not in ("not-found", "")
    pid = unit.get("MainPID", "0")
    process = read(Path("/proc", pid, "cmdline"), errors="replace") if pid not in ("", "0") else ""
    options = read(root / "etc/default/docker", errors="replace")
    return {
        "unit": unit if there else {},
        "listens": show(module, "docker.socket", "Listen").get("Listen", "") if there else "",
        "podman": "install ok" in said("dpkg-query", "--show", "--showformat", "${Status}", "podman-docker"),
        "snap": any((root / place).is_symlink() or (root / place).exists() for place in SNAPS),
        "loose": loose_daemons(root / "proc"),
        "text": read(CONFIGURATION, errors="replace"),
        "ours": json.loads(read(OURS) or "{}"),
        "flags": flags_of(command_of(process, unit.get("ExecStart", ""), options)) if there else {},
        "info": info() if unit.get("ActiveState") == "active" else {},
        "routes": routes(said("ip", "-json", "-4", "route")) + routes(said("ip", "-json", "-6", "route")),
        "resolvers": resolvers(read(root / "etc/resolv.conf", errors="replace")),
    }


# -- What it becomes


def parsed(text: str) -> Settings:
    """Return the content of a daemon.json; raises ValueError."""
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    return found


def wanted(wants: Mapping[str, Any], seen: Mapping[str, Any]) -> Settings:
    """Return the settings that the platform would have, were the engine its own."""
    settings: Settings = {
        "log-driver": "json-file",
        "log-opts": {"max-size": wants["log_max_size"], "max-file": str(wants["log_max_files"])},
        "default-address-pools": [{"base": one["base"], "size": int(one["size"])} for one in wants["address_pools"]],
    }
    if seen["info"].get("Swarm", {}).get("LocalNodeState", "inactive") == "inactive":  # a swarm's engine refuses it
        settings["live-restore"] = True
    if wants["data_root"]:
        settings["data-root"] = wants["data_root"]
    theirs = wants["settings"]
    return {key: value for key, value in settings.items() if not mates(key) & theirs.keys()} | dict(theirs)


def mates(key: str) -> set[str]:
    """Return the keys that a key makes sense with, itself included."""
    return next((keys for keys in TOGETHER if key in keys), {key})


def merged(now: Settings, ours: Settings, want: Settings, flags: Iterable[str]) -> tuple[Settings, Settings]:
    """Return the new settings, and those of them that are the platform's.

    Ours are the values that the platform has noted, and those that it would write anyway: a run that was killed may
    have written them. All others are somebody else's and win; the daemon does not start if a flag sets a key, too.
    """
    nothing = object()
    others = {key: value for key, value in now.items() if value not in (ours.get(key, nothing), want.get(key, nothing))}
    taken = others.keys() | set(flags)
    mine = {key: value for key, value in want.items() if not mates(key) & taken}
    order = [key for key in now if key in others or key in mine]
    new = {key: others.get(key, mine.get(key)) for key in [*order, *(key for key in mine if key not in now)]}
    return new, mine


def changes(now: Settings, new: Settings) -> set[str]:
    """Return the keys that differ."""
    nothing = object()
    return {key for key in now.keys() | new.keys() if now.get(key, nothing) != new.get(key, nothing)}


def data_root(settings: Settings, flags: Mapping[str, list[str]]) -> str:
    """Return the folder that an engine with these settings keeps its data in."""
    set_by_flag = flags.get("data-root") or flags.get("graph") or [""]
    return str(set_by_flag[-1] or settings.get("data-root") or settings.get("graph") or DATA_ROOT)


# -- What is refused


def faults(wants: Mapping[str, Any], seen: Mapping[str, Any], root: Path = Path("/")) -> list[Fault]:
    """Return what the platform cannot go on with, each with its cure."""
    if not seen["unit"] and (found := other_engine(seen)):
        return [found]
    try:
        now = parsed(seen["text"])
    except ValueError as error:
        return [(f"{CONFIGURATION} is not valid JSON ({error})", "Correct it, or remove it if nothing in it is needed")]
    new, _ = merged(now, seen["ours"], wanted(wants, seen), seen["flags"])
    return [
        *tcp(new, seen),
        *lost(wants["settings"], new, seen["flags"]),
        *elsewhere(wants, now, new, seen["flags"], root),
        *colliding(wants, now, new, seen),
    ]


def other_engine(seen: Mapping[str, Any]) -> Fault | None:
    """Return what is in the way of Docker's packages on a host without its unit."""
    if seen["snap"]:
        return (
            "has Docker from a snap, which keeps settings, units and data to itself",
            f"To keep it, {LEAVE}. Otherwise save what its volumes hold, and `snap remove docker`",
        )
    if seen["podman"]:
        return (
            "has podman under the name docker (package podman-docker), which Docker's packages cannot stand beside",
            f"To keep it, {LEAVE}. Otherwise `apt-get remove podman-docker`; podman and its containers stay",
        )
    if seen["loose"]:
        return (
            f"runs dockerd (process {', '.join(seen['loose'])}) without a unit {UNIT}",
            f"To keep it, {LEAVE}. Otherwise stop it; the platform's engine finds what is in {DATA_ROOT}",
        )
    return None


def tcp(new: Settings, seen: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the ways in which the engine listens on TCP."""
    hosts = new.get("hosts")
    places = {
        f"`hosts` in {CONFIGURATION}": hosts if isinstance(hosts, list) else [],
        f"the command line of {UNIT}": seen["flags"].get("hosts", []),
        "docker.socket": re.findall(r"(\S+:\d+) \(Stream\)", seen["listens"]),
    }
    for place, addresses in places.items():
        if open_to := [one for one in addresses if not str(one).startswith(("unix://", "fd://", "/", "npipe://"))]:
            yield (
                f"has a Docker engine that listens on {', '.join(map(str, open_to))}, by {place}: whoever connects "
                "there is root on the host",
                "Remove that address and restart Docker when it suits you. From elsewhere, use "
                "DOCKER_HOST=ssh://USER@HOST",
            )


def lost(choices: Settings, new: Settings, flags: Mapping[str, list[str]]) -> Iterator[Fault]:
    """Yield the settings of the site that others have set to something else."""
    for key in sorted(key for key, value in choices.items() if new.get(key) != value):
        place = f"the command line of {UNIT}" if key in flags else str(CONFIGURATION)
        yield (
            f"has a Docker engine whose `{key}` others set, by {place}, and docker_settings sets it, too",
            "Remove it from one of the two",
        )


def elsewhere(
    wants: Mapping[str, Any], now: Settings, new: Settings, flags: Mapping[str, list[str]], root: Path
) -> Iterator[Fault]:
    """Yield why the data root cannot be as it is wanted."""
    before, after = data_root(now, flags), data_root(new, flags)
    wish = wants["data_root"]
    if wish and os.path.normpath(after) != os.path.normpath(wish):
        yield (
            f"has a Docker engine that others told to keep its data in {after}, and docker_data_root is {wish}",
            f"Set docker_data_root on the host's line to {after}, or remove that setting of the engine",
        )
    elif os.path.normpath(before) != os.path.normpath(after) and has_data(root / before.lstrip("/")):
        yield (
            f"has images, containers or volumes in {before}, which an engine with its data in {after} would not see",
            f"Set docker_data_root on the host's line to {before}. Or stop docker.socket and {UNIT}, move the folder "
            f"with `mv {before} {after}` or, to another disk, `rsync -aHAX --numeric-ids`, and run this again",
        )


def pools_of(settings: Settings) -> list[Network]:
    """Return the networks that the engine takes its own from; raises ValueError."""
    pools = settings.get("default-address-pools") or []
    return [ipaddress.ip_network(one["base"]) for one in pools]


def overlapping(pool: Network, places: Iterable[str]) -> list[str]:
    """Return those of these addresses and networks that overlap with a pool; names are left out."""
    found = []
    for place in places:
        with suppress(ValueError):
            network = ipaddress.ip_network(place, strict=False)
            if network.version == pool.version and network.overlaps(pool):
                found.append(place)
    return found


def colliding(wants: Mapping[str, Any], now: Settings, new: Settings, seen: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the pools from which a container's network could hide something that the host needs.

    Addresses of the inventory count for all pools. What the host itself uses counts for pools that are new.
    """
    key = "default-address-pools"
    try:
        pools = pools_of(new)
    except (ValueError, KeyError, TypeError) as error:
        yield f"has a wrong network in {key} of Docker ({error})", "Write each as {base: 172.29.0.0/16, size: 24}"
        return
    for pool, entry in zip(pools, new.get(key) or [], strict=True):
        if not pool.prefixlen <= int(entry.get("size", pool.prefixlen)) <= pool.max_prefixlen - 2:
            yield (
                f"cannot cut networks of size {entry['size']} from Docker's pool {pool}",
                f"Set its size to a number from {pool.prefixlen} to {pool.max_prefixlen - 2}, such as 24",
            )
        # A wider network only says from where somebody may come.
        near = [one for one in overlapping(pool, wants["addresses"]) if not wider(one, pool)]
        if now.get(key) != new.get(key):
            near += overlapping(pool, [*seen["routes"], *seen["resolvers"]])
        if near:
            yield (
                f"could no longer reach {', '.join(dict.fromkeys(near))}, because Docker takes the networks of "
                f"containers from {pool}",
                "Set docker_address_pools to a network that nobody uses, such as [{base: 10.213.0.0/16, size: 24}]",
            )


def wider(place: str, pool: Network) -> bool:
    """Tell whether a network is more than a pool."""
    return ipaddress.ip_network(place, strict=False).prefixlen < pool.prefixlen
