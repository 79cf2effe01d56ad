#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Remove the platform from a host and leave the host as it was."""

from __future__ import annotations

DOCUMENTATION = r"""
module: uninstall_host
short_description: Remove the platform from a host and leave the host as it was
description:
  - Stops and removes the platform's units, its firewall table, files, folders, authorities, kernel parameters, packages
    and accounts. Puts back what was in the files that it has written.
  - Goes by the record in C(/var/lib/metalworks/before), and by names - a path below C(/etc) or C(/usr/local) with
    C(metalworks) in its name, a unit that refers to C(/etc/metalworks) or C(/opt/metalworks). So what a later release
    writes needs no line here.
  - Leaves packages that were there before, packages that others need, and everything that the platform did not write.
  - Keeps data folders, with the accounts that own them, unless O(delete_data) is set.
  - On a host without a complete record, which an earlier release set up, packages and accounts stay.
  - Can be run again after it was interrupted. Does nothing on a host without the platform.
options:
  packages:
    description: >-
      Packages that the platform's roles install, or patterns of their names. Those that the record does not have are
      removed.
    type: list
    elements: str
    required: true
  data: {type: list, elements: path, default: [], description: More folders with data.}
  delete_data: {type: bool, default: false, description: 'Whether to delete data, and the accounts of people.'}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Remove the platform
  metalworks.platform.uninstall_host:
    packages: [nginx, chrony]
"""

RETURN = r"""
done: {type: list, elements: str, returned: success, description: What was (or in check mode would be) removed.}
kept: {type: list, elements: str, returned: success, description: What stays, and why.}
"""

import contextlib
import fnmatch
import grp
import os
import pwd
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..module_utils import container
from ..module_utils.before import COPIES, FOLDER, OURS, PARAMETERS, WRITTEN, load, packages, put
from ..module_utils.earlier_software import BACKUPS
from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import read
from ..module_utils.system_user import FIRST_UID, login_account
from ..module_utils.systemctl import show

UNITS = Path("/etc/systemd/system")
NAMED = (Path("/etc"), Path("/usr/local"))
"""Where a name with `metalworks` in it is the platform's."""
NAME = "metalworks"
TREES = (
    *map(Path, ("/opt/metalworks", "/run/metalworks", "/var/cache/metalworks", "/etc/metalworks")),
    Path("/var/lib/metalworks/gpu-burnin"),
)
STATES = Path("/var/lib")
CLUSTERS = Path("/etc/postgresql")
ASIDE = "postgresql/*/*.before-restore"
"""Data that a restore replaced, which no cluster knows any more."""
BLOCK = re.compile(r"^# BEGIN ((?i:metalworks)[^\n]*)\n.*?^# END \1\n", re.MULTILINE | re.DOTALL)
OWN_TEXT = re.compile(r"/(?:etc|opt)/metalworks/")
PEOPLE = "metalworks-people"
ORDER = (".timer", ".path", ".socket", ".service")
SERVERS_LAST = re.compile(r"^(?:models-|minio|nginx|postgresql)")
PLAN = "leaving.json"
GENTLY = ("ssh.service", "nftables.service", "docker.service")
"""Units to reload: a restart of nftables flushes other programs' tables, one of Docker may end containers, and one of
SSH needs no drop-in that is gone."""
NUKE = STATES / "docker/nuke-graph-directory.sh"
"""What Debian's docker.io leaves there when it is removed, to delete the folder when its settings are purged."""
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
LOCK = ["-o", "DPkg::Lock::Timeout=300"]
UNNEEDED = ("autoremove", *(f"-oAPT::AutoRemove::{kind}Important=false" for kind in ("Recommends", "Suggests")))
"""What came with a package of ours goes with it, even if one that was there before would like it."""
NEEDS = tuple(f"--no-{kind}" for kind in ("recommends", "suggests", "enhances", "conflicts", "breaks", "replaces"))
CLOCKS = {"chrony": ("systemd-timesyncd", "ntpsec", "openntpd")}
"""Packages that the distribution removes when it installs another."""
HOLDERS = [
    Path("/etc/hosts"),
    Path("/etc/environment"),
    Path("/etc/gitconfig"),
    Path("/etc/cloud/templates/hosts.debian.tmpl"),
    Path("/etc/security/pam_env.conf"),
    Path("/etc/ssh/ssh_known_hosts"),
]
"""Files with blocks of the platform, where the record does not say so."""
STAMPS = Path("/var/lib/systemd/timers")
READERS = {
    "/etc/ssh": "ssh.service",
    "/etc/nginx": "nginx.service",
    "/etc/chrony": "chrony.service",
    "/etc/docker": "docker.service",
}
"""Units of the distribution whose files the platform writes."""


def without_blocks(text: str) -> str:
    """Return a text without the platform's blocks."""
    return BLOCK.sub("", text)


def asked_for(there: Mapping[str, Iterable[str]], wanted: Iterable[str]) -> set[str]:
    """Return the packages that one of these names or patterns asks for, given all names that each package goes by."""
    return {package for package, names in there.items() for one in wanted if fnmatch.filter(names, one)}


def named(places: Iterable[Path] = NAMED) -> list[Path]:
    """Return paths that carry the platform's name, or lead to its programs, without those below one of them."""
    found = []
    for place in places:
        for folder, folders, files in os.walk(place):
            for name in [*folders, *files]:
                path = Path(folder, name)
                if NAME in name or (path.is_symlink() and path.readlink().is_relative_to(OURS[1])):
                    found.append(path)
            folders[:] = [name for name in folders if NAME not in name and not os.path.ismount(Path(folder, name))]
    return sorted(found)


def readers(paths: Iterable[Path], units: Path = UNITS) -> set[str]:
    """Return the units of the distribution that read these files."""
    found = {unit for path in paths for folder, unit in READERS.items() if path.is_relative_to(folder)}
    return found | {
        path.parent.name.removesuffix(".d")
        for path in paths
        if path.parent.parent == units and path.parent.name.endswith(".service.d")
    }


def own_units(written: Iterable[str], folder: Path = UNITS) -> list[Path]:
    """Return the platform's unit files, in the order in which to stop them: timers first, what others use last."""
    found = []
    for path in folder.glob("*.*"):
        if path.is_symlink() or not path.is_file() or path.suffix not in ORDER:
            continue
        if str(path) in written or path.name.startswith(f"{NAME}-") or OWN_TEXT.search(path.read_text()):
            found.append(path)
    return sorted(found, key=lambda one: (ORDER.index(one.suffix), bool(SERVERS_LAST.match(one.name)), one.name))


def accounts_of(units: Iterable[Path], states: Path = STATES) -> set[str]:
    """Return the accounts that the units run as, of those that the platform makes: their home has their name."""
    lines = (line for path in units for line in path.read_text().splitlines())
    names = {line.partition("=")[2].strip() for line in lines if line.startswith("User=")}
    homes = {one.pw_name: one.pw_dir for one in pwd.getpwall()}
    return {name for name in names if homes.get(name) == str(states / name)}


def folders_of(units: Iterable[Path], states: Path = STATES) -> set[Path]:
    """Return the folders with the state of units."""
    found = set()
    for path in units:
        for line in path.read_text().splitlines():
            if line.startswith("StateDirectory="):
                found |= {states / name for name in line.partition("=")[2].split()}
    return found


def delete(path: Path) -> bool:
    """Delete a file or a folder, but no other file system that is mounted there; tell whether it is gone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        if os.path.ismount(path):
            return False
        stay = [inner for inner in path.iterdir() if not delete(inner)]
        if not stay:
            path.rmdir()
        return not stay
    elif path.exists():
        path.unlink()  # a socket or a pipe
    return True


class Host:
    """The host, its record, and the module that changes it."""

    def __init__(self, module: HostModule) -> None:
        """Read the record; keep the module."""
        self.module, self.wants, self.dry = module, module.params, module.check_mode
        self.record, self.written = load()
        self.complete = bool(self.record.get("complete"))
        self.done, self.kept = list[str](), list[str]()
        self.reload: set[str] = set()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command and return its output."""
        return str(self.module.run_command(list(command), check_rc=check, environ_update=QUIET)[1])

    def act(self, action: str) -> bool:
        """Record an action; tell whether to carry it out."""
        self.done.append(action)
        return not self.dry

    def plan(self, units: list[Path]) -> tuple[list[str], list[Path]]:
        """Return accounts and data folders, also those that an interrupted run found by units that are gone now."""
        plan: dict[str, list[str]] = {"accounts": [], "folders": [], "reload": []}
        if (FOLDER / PLAN).exists():
            plan = self.module.from_json((FOLDER / PLAN).read_text())
        accounts = accounts_of(units) | {*plan["accounts"], *self.noted("account")}
        found = folders_of(units) | {STATES / name for name in accounts}
        found |= {path for path in STATES.glob(ASIDE) if not self.had(path.parent.name)}
        engines = self.noted("data") if self.complete else []  # whose packages stay without a complete record
        folders = {*plan["folders"], *self.wants["data"], *engines, *map(str, found)}
        self.reload = readers(self.paths()) | {*plan["reload"]}
        if not self.dry:
            FOLDER.mkdir(parents=True, exist_ok=True)
            put(
                FOLDER / PLAN,
                {"accounts": sorted(accounts), "folders": sorted(folders), "reload": sorted(self.reload)},
            )
        return sorted(accounts), [Path(one) for one in sorted(folders)]

    def had(self, version: str) -> bool:
        """Tell whether PostgreSQL of this version may have been there before, with others' databases."""
        return not self.complete or f"postgresql-{version}" in self.record["packages"]

    def clusters(self) -> None:
        """Say what becomes of databases. A cluster that may have been there before can hold others' databases."""
        for path in STATES.glob(ASIDE):
            if self.had(path.parent.name):
                self.kept.append(f"{path}, which a restore replaced, with databases of others: delete it by hand")
        for path in CLUSTERS.glob(f"*/*/conf.d/{NAME}.conf"):
            version, name = path.parts[3:5]
            data = STATES / "postgresql" / version / name
            if self.had(version):
                self.kept.append(f"databases in {data}, with those of others: drop the platform's by hand")
            elif not self.wants["delete_data"]:
                self.kept.append(f"data in {data}")

    def noted(self, kind: str) -> list[str]:
        """Return the accounts, groups or other things of a kind that the platform made."""
        return [key.partition(" ")[2] for key in self.written if key.startswith(f"{kind} ")]

    def stop(self, units: list[Path]) -> None:
        """Stop and disable the units, and remove their files."""
        for path in units:
            if self.act(f"unit {path.name}"):
                # A template cannot be stopped, only its instances can.
                self.run("systemctl", "stop", path.name.replace("@.", "@*."))
                self.run("systemctl", "--quiet", "disable", path.name)
                self.run("systemctl", "reset-failed", path.name.replace("@.", "@*."), check=False)
                (STAMPS / f"stamp-{path.name}").unlink(missing_ok=True)
                path.unlink()

    def containers(self) -> None:
        """End the containers of an engine that goes: with live-restore, they would outlive it."""
        docker = self.module.get_bin_path("docker") if self.complete and "docker" in self.noted("engine") else None
        if docker and show(self.module, "docker.service", "ActiveState")["ActiveState"] == "active":
            running = self.run(docker, "ps", "--quiet").split()
            if running and self.act(f"{len(running)} running containers"):
                self.run(docker, "stop", *running)

    def open(self) -> None:
        """Delete the firewall's table, while the unit that loads it at boot stops without flushing other tables."""
        unit = "nftables.service"
        was = self.record.get("units", {}).get(unit)
        state = show(self.module, unit, "UnitFileState")["UnitFileState"]
        if was == "disabled" and state == "enabled" and self.act(f"{unit} at boot"):
            self.run("systemctl", "--quiet", "disable", "--now", unit)
        nft = self.module.get_bin_path("nft", opt_dirs=["/usr/sbin"])
        there = nft and self.module.run_command([nft, "list", "table", "inet", NAME])[0] == 0
        if there and self.act(f"table inet {NAME}"):
            self.run(nft, "delete", "table", "inet", NAME)

    def paths(self) -> list[Path]:
        """Return the files and folders that the platform has written, the deepest first."""
        ours = {path for path in map(Path, self.written) if path.is_absolute()}
        return sorted({*ours, *named()}, key=lambda one: (-len(one.parts), one))

    def files(self) -> None:
        """Put back what was in the files that the platform has written; remove those that were not there."""
        holders = {Path(one) for one in self.noted("block")} | {path for path in HOLDERS if BLOCK.search(read(path))}
        for path in sorted(holders):
            self.block(path)
        for path in self.paths():
            if path not in holders:
                self.file(path)

    def block(self, path: Path) -> None:
        """Remove the platform's blocks from a file that is otherwise somebody else's."""
        text = read(path)
        rest = without_blocks(text)
        if rest == text or not self.act(f"block in {path}"):
            return
        if str(path) in self.written and not rest.strip():  # the platform made the file
            path.unlink()
            return
        with path.open("r+", encoding="utf-8") as file:  # it may be a mount
            file.write(rest)
            file.truncate()

    def file(self, path: Path) -> None:
        """Put back or remove one path."""
        copy = self.written.get(str(path))
        if copy is not None:
            saved = FOLDER / COPIES / copy
            if not saved.is_symlink() and not saved.exists():
                self.kept.append(f"{path}, because the copy of what it was is gone")
            elif not self.same(path, saved) and self.act(f"{path}, as it was"):
                self.put_back(saved, path)
        elif path.is_symlink() or path.is_file():
            if self.act(str(path)):
                path.unlink()
        elif path.is_dir():
            if NAME in path.name:
                if self.act(f"{path}/"):
                    delete(path)
            elif not any(path.iterdir()) and self.act(f"{path}/"):
                path.rmdir()

    def same(self, path: Path, saved: Path) -> bool:
        """Tell whether a path is as its copy."""
        if path.is_symlink() or saved.is_symlink():
            return path.is_symlink() and saved.is_symlink() and path.readlink() == saved.readlink()
        if not path.is_file() or path.read_bytes() != saved.read_bytes():
            return False
        one, other = path.stat(), saved.stat()
        return (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)

    def put_back(self, saved: Path, path: Path) -> None:
        """Replace a path by its copy, at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        shutil.copy2(saved, draft, follow_symlinks=False)
        status = saved.lstat()
        os.chown(draft, status.st_uid, status.st_gid, follow_symlinks=False)
        draft.replace(path)

    def others(self) -> None:
        """Let units of the distribution follow their files; disable one that was disabled."""
        if not self.dry:
            self.run("systemctl", "daemon-reload")
        before = self.record.get("units", {})
        for unit in sorted(self.reload):
            state = show(self.module, unit, "ActiveState", "UnitFileState")
            if before.get(unit) == "disabled" and state["UnitFileState"] == "enabled":
                if self.act(f"{unit} at boot"):
                    self.run("systemctl", "--quiet", "disable", "--now", unit)
            elif state["ActiveState"] == "active" and not self.dry:
                self.run("systemctl", "reload" if unit in GENTLY else "restart", unit)

    def kernel(self) -> None:
        """Set the kernel's parameters to what they were."""
        if os.statvfs(PARAMETERS).f_flag & os.ST_RDONLY:
            return
        for name, value in self.record.get("kernel", {}).items():
            file = PARAMETERS / name.replace(".", "/")
            if not file.exists() or file.read_text().strip() == value:
                continue
            if self.act(f"kernel parameter {name}"):
                try:
                    file.write_text(f"{value}\n")
                except OSError:
                    self.kept.append(f"kernel parameter {name}, until the next boot")

    def authorities(self) -> None:
        """Rebuild the bundle of what the host trusts."""
        program = shutil.which("update-ca-certificates")
        if program and not self.dry:
            self.run(program, "--fresh")

    def simulated(self, verb: str, *names: str) -> set[str]:
        """Return the packages that apt would remove."""
        lines = self.run("apt-get", "--simulate", verb, *names).splitlines()
        return {line.split()[1].partition(":")[0] for line in lines if line.startswith(("Remv ", "Purg "))}

    def software(self) -> None:
        """Remove the packages that the platform installed and nobody else needs."""
        if not self.complete:
            self.kept.append("packages and accounts: an earlier release set this host up, so what was there is unknown")
            return
        old = {*self.record["packages"]}
        there = packages(self.module)
        new = there.keys() - old
        ours = asked_for({name: there[name] for name in new}, self.wants["packages"])
        mine = {name for name in ours if self.simulated("remove", name) <= new}
        if others := sorted(ours - mine):
            self.kept.append(f"packages that others need: {', '.join(others)}")
        came = self.needs(mine) - old
        while mine:
            self.purge(mine)
            if self.dry:
                return
            mine = self.simulated(*UNNEEDED) & came & {*packages(self.module)}
        for package, rivals in CLOCKS.items():
            lost = [name for name in rivals if name in old and name not in packages(self.module)]
            if lost and package not in old and self.act(f"packages {', '.join(lost)}, which were there"):
                self.run("apt-get", *LOCK, "--yes", "--no-install-recommends", "install", *lost)

    def needs(self, names: set[str]) -> set[str]:
        """Return the installed packages that these depend on, directly or not."""
        lines = self.run("apt-cache", "depends", "--recurse", "--installed", *NEEDS, *sorted(names)) if names else ""
        return {line.partition(":")[0] for line in lines.splitlines() if line and line[0] not in " <|"}

    def purge(self, names: set[str]) -> None:
        """Remove packages with their settings; those of a database that stays, without."""
        if "docker.io" in names and self.act("package docker.io without its data"):
            self.run("apt-get", *LOCK, "--yes", "remove", "docker.io")
            NUKE.unlink(missing_ok=True)
        keep = set() if self.wants["delete_data"] else {name for name in names if name.startswith("postgresql")}
        for verb, some in (("remove", keep), ("purge", names - keep)):
            if some and self.act(f"packages {', '.join(sorted(some))}"):
                self.run("apt-get", *LOCK, "--yes", verb, *sorted(some))

    def data(self, folders: list[Path]) -> None:
        """Delete data folders if that is wanted."""
        for path in folders:
            if not path.exists():
                continue
            if not self.wants["delete_data"]:
                self.kept.append(f"data in {path}")
            elif self.act(f"data in {path}") and not delete(path):
                self.kept.append(f"{path}, which is another file system")

    def people(self) -> None:
        """Lock the accounts that the platform made for people, or delete them with their homes."""
        there = {one.pw_name for one in pwd.getpwall()}
        for name in sorted({*self.noted("person")} & there - {login_account()}):
            if not self.wants["delete_data"]:
                self.kept.append(f"account {name}, locked, with its home")
            if self.dry:
                continue
            self.run("usermod", "--lock", "--expiredate", "1", name)
            self.run("pkill", "--signal", "KILL", "--uid", name, check=False)  # it exits with 1 if there are none
            if self.wants["delete_data"] and self.act(f"account {name} with its home"):
                self.run("userdel", "--remove", name)

    def accounts(self, names: list[str]) -> None:
        """Remove accounts and groups that own nothing any more."""
        old_groups = {*self.record["groups"]}
        # Packages that were removed leave their accounts behind.
        there = packages(self.module)
        left = {account for name in self.wants["packages"] if name not in there for account in (name, f"_{name}")}
        for name in sorted({*names, *left}):
            try:
                person = pwd.getpwnam(name)
            except KeyError:
                continue
            if name in self.record["accounts"] or person.pw_uid >= FIRST_UID:
                continue
            if Path(person.pw_dir).exists():
                self.kept.append(f"account {name}, which owns {person.pw_dir}")
            elif self.act(f"account {name}"):
                self.run("userdel", name)
        stay = {one.pw_gid for one in pwd.getpwall()}
        for one in grp.getgrall():
            ours = one.gr_name in {*self.noted("group"), *names} or one.gr_name.startswith(NAME)
            if not ours or one.gr_name in old_groups or one.gr_gid in stay:
                continue
            if one.gr_name == PEOPLE and one.gr_mem:
                self.kept.append(f"group {PEOPLE}, for the accounts in it")
            elif self.act(f"group {one.gr_name}"):
                self.run("groupdel", one.gr_name)

    def members(self) -> None:
        """Take people out of groups that others made."""
        for name in self.noted("member"):
            group, _, person = name.partition(" ")
            with contextlib.suppress(KeyError):  # no such group any more
                if person in grp.getgrnam(group).gr_mem and self.act(f"{person} in group {group}"):
                    self.run("gpasswd", "--delete", person, group)

    def images(self) -> None:
        """Remove the bases of containers."""
        for engine in (container.PODMAN, container.DOCKER):
            program = container.program(engine)
            if not Path(program).exists() or self.module.run_command([program, "info"])[0]:  # nothing runs in it now
                continue
            found = self.module.run_command([program, "images", "--quiet", container.BASE], check_rc=True)[1].split()
            if found and self.act(f"images {container.BASE} of {engine}"):
                self.run(program, "rmi", "--force", *sorted(set(found)))

    def trees(self) -> None:
        """Delete the platform's own folders."""
        for path in TREES:
            if path.exists() and self.act(f"{path}/") and not delete(path):
                self.kept.append(f"{path}, which has another file system in it")

    def converge(self) -> None:
        """Remove everything; the record last, so that a killed run can be run again."""
        if not self.record and not OURS[0].exists() and not (FOLDER / PLAN).exists():
            return
        units = own_units(self.written)
        accounts, folders = self.plan(units)
        self.clusters()
        self.stop(units)
        self.containers()
        self.open()
        self.files()
        self.authorities()
        self.images()
        self.software()
        self.others()
        self.kernel()
        self.data(folders)
        self.members()
        self.people()
        if self.complete:
            self.accounts(accounts)
        self.trees()
        for path in BACKUPS.glob(f"*.before-{NAME}") if self.complete else ():  # put back from the record
            if self.act(str(path)):
                path.unlink()
        if self.act(f"{FOLDER.parent}/"):
            (FOLDER / WRITTEN).unlink(missing_ok=True)
            delete(FOLDER.parent)


def main() -> None:
    """Read the arguments and remove the platform."""
    module = HostModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "data": {"type": "list", "elements": "path", "default": []},
            "delete_data": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    host = Host(module)
    host.converge()
    module.exit_json(changed=bool(host.done), done=host.done, kept=host.kept)


if __name__ == "__main__":
    main()
