"""Run a unit's commands in a container of podman or Docker: the same release, files, user, network and limits.

The base is made of the host's own packages, so it has the Python that the release was built with, and no registry is
needed. A container sees its program, the files that its unit depends on, and its own folders: nothing else of the host.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .replace_file import differs, read, replace

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

NATIVE, PODMAN, DOCKER = "native", "podman", "docker"
SPEC: dict[str, Any] = {
    "runtime": {"type": "str", "choices": [NATIVE, PODMAN, DOCKER], "default": NATIVE},
    "image": {"type": "str", "default": ""},
    "relay": {"type": "str", "default": ""},
}
"""Argument spec of a runtime; the action plugin sets `relay`."""

BASE = "localhost/metalworks-base"
PACKAGES = (
    *("python3", "dash", "coreutils", "base-files", "netbase", "tzdata", "openssl", "ca-certificates"),
    *("libstdc++6", "libgomp1"),  # what wheels take for granted
)
"""What the base is made of, as far as the host has it, with everything that these need."""
ASK = """\
import ctypes, platform
for name in ("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1"):
    ctypes.CDLL(name)
print("Python", platform.python_version())
"""
"""What an image has to answer: it has the libraries that wheels take for granted, and this Python."""
LEFT_OUT = ("/usr/share/doc/", "/usr/share/info/", "/usr/share/lintian/", "/usr/share/locale/", "/usr/share/man/")
KEEP = 2
"""Bases that stay besides those that units run in: a rollback may bring back a unit that names one."""
SEEN = ("/etc/passwd", "/etc/group", "/etc/localtime", "/etc/ssl/certs", "/usr/local/share/ca-certificates")
"""What every container sees of the host: names of accounts, the time zone, certificates."""
COPIED = ("/etc/hosts",)
"""What an engine copies when a container starts, so that a change needs a restart."""
UNITS = Path("/etc/systemd/system")
RELAY = Path("/opt/metalworks/container/relay.py")
RELAYS = "/run/metalworks/notify"
PYTHON = "/usr/bin/python3"
NOTIFY = "/run/systemd/notify"
LARGE = "/var/cache/metalworks/tmp"
"""Holds each unit's /var/tmp, on disk: an engine's own volume would outlive a crash of the engine."""
STEERS = re.compile(r"HOME|PATH|LD_\w+|(DOCKER|PODMAN|CONTAINERS?|XDG|STORAGE|REGISTRY|NOTIFY|WATCHDOG)_\w+")
"""Variables that would steer the engine's client, which root runs."""
ENVIRONMENT = ("LANG", "USER", "LOGNAME", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
"""Variables of systemd that a program has in both forms."""
OF_THE_UNIT = {
    *("MemoryMax", "Nice", "OOMPolicy", "RuntimeDirectory", "RuntimeDirectoryMode", "TimeoutStartSec"),
    *("TimeoutStopSec", "UMask", "WatchdogSec"),
}
"""Settings of a unit's `service` that mean the same for a container."""
UNITS_OF_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
ISOLATION = (
    *("--rm", "--init", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    # The host's network and user ids: the firewall's rules by user hold, and sockets are where they were.
    *("--network=host", "--userns=host", "--pull=never", "--tmpfs=/tmp"),
    # The journal has the output already. A file of the engine's would be a second copy, without a limit.
    "--log-driver=none",
)
# Processes of podman stay in the unit's control group: its limits hold for them, and they end with it.
PODMANS = ("--cgroups=disabled", "--read-only-tmpfs=false", "--http-proxy=false", "--sdnotify=ignore")


def program(engine: str) -> str:
    """Return the path of an engine's client."""
    return f"/usr/bin/{engine}"


def client(engine: str) -> list[str]:
    """Return how a unit calls an engine's client; podman would write its events into the unit's journal."""
    return [program(engine), *(["--events-backend=none"] if engine == PODMAN else [])]


def removal(engine: str, unit: str) -> str:
    """Return the command that removes a unit's container if there is one, and says nothing if there is none."""
    if engine == PODMAN:
        return f"+{' '.join(client(engine))} rm --force --volumes --ignore {name_of(unit)}"
    found = f"{program(engine)} ps --all --quiet --filter name=^/{name_of(unit)}$$"
    return f'+/bin/sh -c "{found} | xargs --no-run-if-empty {program(engine)} rm --force --volumes"'


def name_of(unit: str) -> str:
    """Return the name of a unit's container; the prefix keeps it apart from other containers of the host."""
    return f"metalworks-{unit.removeprefix('metalworks-')}"


def quoted(argument: str) -> str:
    """Return an argument as systemd reads it unchanged in a command line."""
    escaped = re.sub(r'([\\"])', r"\\\1", argument).replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", escaped) else f'"{escaped}"'


def in_bytes(limit: str, total: int) -> int:
    """Return a MemoryMax in bytes; 0 for no limit."""
    if limit == "infinity":
        return 0
    if limit.endswith("%"):
        return int(total * float(limit[:-1]) / 100)
    number = limit.rstrip("KMGT")
    return int(float(number) * UNITS_OF_SIZE[limit[len(number) :]])


def memory() -> int:
    """Return the host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refusal(wants: dict[str, Any], environment: dict[str, Any]) -> str:
    """Return why a unit has no container form; empty if it has one."""
    alone = sorted(set(wants["service"]) - OF_THE_UNIT)
    if alone:
        return f"{wants['name']} sets {', '.join(alone)}, which no container has. Use runtime native for it."
    steering = sorted(name for name in environment if STEERS.fullmatch(name))
    if steering:
        return (
            f"{wants['name']} sets the environment variable {', '.join(steering)}, which would steer the engine "
            "itself. Remove it, or use runtime native."
        )
    return ""


def mounts(wants: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield the host's paths that a unit's container sees, where, and whether it may write there."""
    root = wants["container"]["root"]
    yield root, root, False
    others = [*SEEN, *(path for path in wants["restart_on"] if not Path(path).is_relative_to(root))]
    unseen = {*COPIED, str(RELAY)}
    yield from ((path, path, False) for path in dict.fromkeys(others) if path not in unseen and Path(path).exists())
    yield f"{LARGE}/{wants['name']}", "/var/tmp", True  # noqa: S108 - the container has one of its own
    for path in (
        f"/var/lib/{wants['name']}",
        *(f"/run/{name}" for name in str(wants["service"].get("RuntimeDirectory", "")).split()),
    ):
        yield path, path, True


def run_command(wants: dict[str, Any], environment: dict[str, Any], watched: bool = False) -> list[str]:
    """Return the arguments before a command of the unit that run it in a container."""
    engine, name, service = wants["container"]["engine"], wants["name"], wants["service"]
    user = pwd.getpwnam(wants["user"])
    command = [*client(engine), "run", f"--name={name_of(name)}", *ISOLATION]
    command += [f"--user={user.pw_uid}:{user.pw_gid}", f"--workdir=/var/lib/{name}"]
    for path, target, writable in mounts(wants):
        command.append(f"--mount=type=bind,source={path},target={target}{'' if writable else ',readonly'}")
    command += [f"--env=HOME={user.pw_dir}", *(f"--env={one}" for one in (*ENVIRONMENT, *sorted(environment)))]
    shell = f"umask {service.get('UMask', '0077')}; exec"
    if engine == PODMAN:
        command += PODMANS
    else:
        limit = in_bytes(str(service.get("MemoryMax", "90%")), memory())
        command += [f"--memory={limit}"] if limit else []
        shell += f" nice -n {service['Nice']}" if "Nice" in service else ""
    if watched:
        here = NOTIFY if engine == PODMAN else f"{RELAYS}/{name}"
        command += [f"--mount=type=bind,source={here},target={NOTIFY}", f"--env=NOTIFY_SOCKET={NOTIFY}"]
        command.append("--env=WATCHDOG_USEC")
    return [*command, wants["container"]["image"], "/bin/sh", "-c", f'{shell} "$@"', "sh"]


def lines(wants: dict[str, Any], environment: dict[str, Any]) -> dict[str, list[str]]:
    """Return the lines of the unit's file that differ from the native form: start, confinement, own."""
    engine, service = wants["container"]["engine"], wants["service"]
    empty = f"+/usr/bin/find {LARGE}/{wants['name']} -mindepth 1 -delete"
    watched = "WatchdogSec" in service
    before, run = (" ".join(map(quoted, run_command(wants, environment, each))) for each in (False, watched))
    remove = removal(engine, wants["name"])
    relay = f"{PYTHON} {RELAY} {RELAYS}/{wants['name']} {wants['user']} " if watched and engine == DOCKER else ""
    own = [f"{key}={value}" for key, value in sorted(service.items()) if key != "UMask"]
    return {
        "start": [
            "# The client is root's, the container's processes are the user's.",
            "Environment=HOME=/root",
            "# What a crash of the host or the engine left.",
            f"ExecStartPre={remove}",
            f"ExecStartPre={empty}",
            *(f"ExecStartPre=+{before} {command}" for command in wants["prestart"]),
            f"ExecStart=+{relay}{run} {wants['command']}",
            f"ExecStopPost={remove}",
            f"ExecStopPost={empty}",
        ],
        "confinement": [
            "# To the client, which hands it on; what is left then, to all.",
            "KillMode=mixed",
            "# How a client ends whose container was asked to.",
            "SuccessExitStatus=143",
            *(["NotifyAccess=all", "WatchdogSignal=SIGKILL"] if watched else []),
            f"CacheDirectory={LARGE.removeprefix('/var/cache/')}/{wants['name']}",
            "CacheDirectoryMode=0700",
            *(["MemoryMax=90%"] if engine == PODMAN else []),
        ],
        "own": own,
    }


def engine_of(unit: str) -> str:
    """Return the engine in whose containers a unit's file runs its commands; empty for none."""
    found = re.search(rf"^ExecStopPost=.*/usr/bin/({PODMAN}|{DOCKER}) ", unit, re.MULTILINE)
    return found[1] if found else ""


def engines(units: list[dict[str, Any]]) -> set[str]:
    """Return the engines in whose containers units run so far."""
    return {engine for unit in units if (engine := engine_of(read(UNITS / f"{unit['name']}.service")))}


class Image:
    """The image that a program's containers are made of."""

    def __init__(self, module: AnsibleModule, wants: dict[str, Any]) -> None:
        """Keep what is wanted."""
        self.module, self.engine, self.given = module, wants["runtime"], wants["image"]
        self.python, self.units = wants["python"], [unit["name"] for unit in wants["units"]]
        self.packages: dict[str, str] = {}

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command of the engine's client."""
        code, out, err = self.module.run_command([program(self.engine), *arguments], cwd="/")
        return int(code), str(out), str(err)

    def fail(self, reason: str) -> None:
        """End the task; nothing was changed yet."""
        self.module.fail_json(msg=f"{reason}\nNothing was changed.")

    def look(self) -> None:
        """Fail unless the engine answers."""
        if not Path(program(self.engine)).exists():
            code, err = 1, f"{program(self.engine)} does not exist"
        else:
            code, _, err = self.call("info", "--format", "{{.}}")
        if code:
            package = "docker.io" if self.engine == DOCKER else "podman crun catatonit"
            self.fail(
                f"The runtime is {self.engine}, and this host has none that answers: {err.strip()}. Install or start "
                f"it (`apt install {package}`), or choose another runtime."
            )

    def base(self) -> str:
        """Return the name of the base, which says what it is made of."""
        query = ["apt-cache", "depends", "--recurse", "--installed", "--no-recommends", "--no-suggests"]
        query += ["--no-enhances", "--no-breaks", "--no-conflicts", "--no-replaces", *PACKAGES]
        listed = self.module.run_command(query, check_rc=True)[1].splitlines()
        names = sorted({line for line in listed if re.fullmatch(r"[a-z0-9][a-z0-9.+:-]+", line)})
        shown = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${binary:Package} ${Version}\n", *names]
        for line in self.module.run_command(shown)[1].splitlines():
            status, package, version = line.split(" ", 2)
            if status == "installed":
                self.packages[package] = version
        recipe = sha256(repr([sorted(self.packages.items()), LEFT_OUT, 1]).encode())
        return f"{BASE}:{recipe.hexdigest()[:16]}"

    def files(self) -> Iterator[str]:
        """Yield the paths of the base's files, without links in their folders, each once."""
        listed = self.module.run_command(["dpkg", "--listfiles", *sorted(self.packages)], check_rc=True)[1]
        compiled = f".{sys.implementation.cache_tag}.pyc"
        seen = {"/"}
        for path in map(Path, sorted({line for line in listed.splitlines() if line.startswith("/")})):
            pair = (path, path.parent / "__pycache__" / f"{path.stem}{compiled}") if path.suffix == ".py" else (path,)
            for each in pair:
                real = str(each.parent.resolve() / each.name)
                if real not in seen and os.path.lexists(real) and not f"{real}/".startswith(LEFT_OUT):
                    seen.add(real)
                    yield real

    def build(self, image: str) -> None:
        """Make the base."""
        files = set(self.files())
        if str(Path(self.python).resolve()) not in files:
            self.fail(
                f"The base of containers has the distribution's Python, and {self.python} is another. Set "
                f"python_app_python to {PYTHON}, or name an image that has it."
            )
        with tempfile.NamedTemporaryFile(dir="/var/tmp", suffix=".tar") as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for path in sorted(files):
                    tar.add(path, path.lstrip("/"), recursive=False)
                for folder, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("run", 0o755), ("proc", 0o555)):
                    if f"/{folder}" not in files:
                        entry = tarfile.TarInfo(folder)
                        entry.type, entry.mode = tarfile.DIRTYPE, mode
                        tar.addfile(entry)
            archive.flush()
            code, _, err = self.call("import", archive.name, image)
        if code:
            self.fail(f"{self.engine} does not take the base: {err.strip()}")

    def try_out(self, image: str) -> None:
        """Fail unless the image runs as units will, with the Python that the release is built with."""
        podmans = PODMANS if self.engine == PODMAN else ()
        ask = ("/bin/sh", "-c", 'exec "$@"', "sh", self.python, "-c", ASK)
        code, out, err = self.call("run", *ISOLATION, *podmans, "--user=65534:65534", image, *ask)
        wanted = self.module.run_command([self.python, "--version"], check_rc=True)[1]
        if code:
            self.fail(f"A container of {image} cannot run Python programs: {err.strip()}")
        if out.split(".")[:2] != wanted.split(".")[:2]:
            self.fail(
                f"{image} has {out.strip()}, and the release is built with {wanted.strip()} of this host. Name an "
                f"image with that {self.python}, or none for a base of this host's packages."
            )

    def ensure(self) -> tuple[str, bool]:
        """Have the image on the host; return its name and whether it was missing."""
        check = self.module.check_mode
        if check and not Path(program(self.engine)).exists():  # the task before did not install it
            return self.given or BASE, True
        self.look()
        image = self.given or self.base()
        missing = self.call("image", "inspect", image)[0] != 0
        if check:
            return image, missing
        if missing and self.given:
            code, _, err = self.call("pull", "--quiet", image)
            if code:
                self.fail(f"{self.engine} cannot pull {image}: {err.strip()}\nTry `{self.engine} pull {image}` there.")
        elif missing:
            self.build(image)
        if missing or not all(image in read(UNITS / f"{unit}.service") for unit in self.units):
            self.try_out(image)
        return image, missing


def prepare(module: AnsibleModule, wants: dict[str, Any]) -> bool:
    """Have everything for the units' containers, and say in each unit what it runs in; tell whether it was missing."""
    if wants["runtime"] == NATIVE:
        return False
    image, missing = Image(module, wants).ensure()
    stale = bool(wants["relay"]) and differs(RELAY, wants["relay"])
    if stale and not module.check_mode:
        replace(RELAY, wants["relay"])
    for unit in wants["units"]:
        unit["container"] = {"engine": wants["runtime"], "image": image, "root": wants["root"]}
        unit["after"] = [*unit["after"], *(["docker.service"] if wants["runtime"] == DOCKER else [])]
        unit["restart_on"] = [*unit["restart_on"], *COPIED, *([str(RELAY)] if wants["relay"] else [])]
    return missing or stale


def prune(module: AnsibleModule, engine: str) -> None:
    """Remove bases that no unit runs in, except the newest."""
    command = [program(engine), "images", "--format", "{{.Repository}}:{{.Tag}}", BASE]
    images = module.run_command(command, check_rc=True)[1].split()  # the newest first
    text = "".join(read(path) for path in UNITS.glob("*.service"))
    unused = [image for image in images if image not in text]
    for image in unused[KEEP:]:
        module.run_command([program(engine), "rmi", image], check_rc=True)
