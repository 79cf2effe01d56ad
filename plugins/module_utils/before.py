"""What a host was like before the platform came, recorded when the platform first changes it, for its removal.

The record is a folder that only root may enter. `record.json` has the packages, accounts, groups, enabled units and
kernel parameters of that moment; `written.json` has the paths that the platform has written since, and for each the
name of a copy of what was there, or null if nothing was.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

FOLDER = Path("/var/lib/metalworks/before")
RECORD, WRITTEN, COPIES = "record.json", "written.json", "copies"
OURS = (Path("/etc/metalworks"), Path("/opt/metalworks"), Path("/var/lib/metalworks"))
"""Folders of the platform alone, which go as a whole. The first is there on each host that it has set up."""
SHARED = (Path("/etc"), Path("/usr"))
"""Where the platform writes beside others, and a path has to be recorded."""
PARAMETERS = Path("/proc/sys")
OWN = re.compile(rb"Ansible managed|Managed by Ansible|/metalworks")
"""In almost every file that the platform writes."""


def packages(module: AnsibleModule) -> dict[str, list[str]]:
    """Return the installed packages with all names that each goes by: its own, and those that it provides.

    A package may have another name in a newer release: there, libglib2.0-0t64 provides libglib2.0-0.
    """
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}, ${Provides}\\n"]
    lines = module.run_command(command, check_rc=True)[1].splitlines()
    return names_of(names for state, _, names in (line.partition(" ") for line in lines) if state == "installed")


def names_of(lists: Iterable[str]) -> dict[str, list[str]]:
    """Return the names in such lists by the first of each list; they may have versions: `a, b (= 1)`."""
    found = ([words[0] for each in names.split(",") if (words := each.split())] for names in lists)
    return {names[0]: names for names in found}


def enabled_units(module: AnsibleModule) -> dict[str, str]:
    """Return which units are enabled or disabled, by name."""
    command = ["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--state=enabled,disabled,masked"]
    rows = (line.split() for line in module.run_command(command, check_rc=True)[1].splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def parameters(names: Iterable[str]) -> dict[str, str]:
    """Return the kernel's values of these parameters; of those that it has."""
    files = {name: PARAMETERS / name.replace(".", "/") for name in names}
    return {name: file.read_text().strip() for name, file in files.items() if file.exists()}


def put(path: Path, content: Any) -> None:
    """Replace a file of the record at once, so that a killed run leaves the old one or the new one."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    draft.replace(path)


def begin(module: AnsibleModule, kernel: Iterable[str], folder: Path = FOLDER) -> bool:
    """Record what the host is like, unless it is recorded already; tell whether that was done.

    A host that an earlier release set up has no such moment any more: its record is not `complete`, and packages and
    accounts stay when the platform goes.
    """
    if (folder / RECORD).exists() or module.check_mode:
        return not (folder / RECORD).exists()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    record = {
        "complete": not OURS[0].exists(),
        "packages": sorted(packages(module)),
        "accounts": sorted(one.pw_name for one in pwd.getpwall()),
        "groups": sorted(one.gr_name for one in grp.getgrall()),
        "units": enabled_units(module),
        "kernel": parameters(kernel),
    }
    put(folder / RECORD, record)
    return True


def load(folder: Path = FOLDER) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return the record and the written paths; both empty if there are none."""
    found = [json.loads(path.read_text()) if path.exists() else {} for path in (folder / RECORD, folder / WRITTEN)]
    return found[0], found[1]


def note(key: str, copy: str | None, folder: Path) -> None:
    """Add a path, or something else that the platform made, to what it has written."""
    put(folder / WRITTEN, {**load(folder)[1], key: copy})


def keeps(folder: Path) -> bool:
    """Tell whether this process keeps the record: as root, on a host that has one."""
    return os.geteuid() == 0 and (folder / RECORD).exists()


def made(kind: str, name: str, folder: Path = FOLDER) -> None:
    """Note that the platform is about to make an `account`, a `person`, a `group` or a `block` that the host lacks."""
    if keeps(folder):
        note(f"{kind} {name}", None, folder)


def ours(path: Path, folder: Path) -> bool:
    """Tell whether an earlier release of the platform, which kept no record, has written a file."""
    if load(folder)[0].get("complete") or path.is_symlink() or not path.is_file():
        return False
    return bool(OWN.search(path.read_bytes()))


def keep(path: Path, folder: Path = FOLDER, shared: tuple[Path, ...] = SHARED) -> None:
    """Note that the platform is about to write a path, and copy what is there, unless the path was noted before."""
    if not keeps(folder) or path.is_relative_to(OURS[0]) or not any(path.is_relative_to(place) for place in shared):
        return
    if str(path) in load(folder)[1]:
        return
    for parent in reversed(path.parents):
        if not parent.exists():
            note(str(parent), None, folder)
    copy = None
    if ours(path, folder):  # an earlier release wrote it, and it may hold secrets
        pass
    elif path.is_symlink() or path.is_file():
        copy = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        (folder / COPIES).mkdir(exist_ok=True)
        draft = folder / COPIES / f".{copy}.new"
        draft.unlink(missing_ok=True)
        shutil.copy2(path, draft, follow_symlinks=False)
        status = path.lstat()
        os.chown(draft, status.st_uid, status.st_gid, follow_symlinks=False)
        draft.replace(folder / COPIES / copy)
    elif path.exists():
        return  # a folder that was there
    note(str(path), copy, folder)
