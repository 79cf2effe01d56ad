"""Accounts and groups of services."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from .before import made

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

NOLOGIN = "/usr/sbin/nologin"
FIRST_UID = 1000
"""Accounts and groups below belong to the system and its services."""
PACKAGED = {"postgres"}
"""Accounts that a package makes and needs as they are, and that units of ours use too."""
NOBODY = 65534
LOCAL = Path("/etc/passwd")
HOMES = Path("/home")
LOGIN_UID = Path("/proc/self/loginuid")


def login_account() -> str:
    """Return the account that Ansible logged in with, before it became another user."""
    for name in ("SUDO_USER", "DOAS_USER"):
        if account := os.environ.get(name):
            return account
    try:
        return pwd.getpwuid(int(LOGIN_UID.read_text())).pw_name
    except (OSError, ValueError, KeyError, OverflowError):  # no login is recorded: a container, or a local connection
        return pwd.getpwuid(os.getuid()).pw_name


def system_names() -> list[str]:
    """Return the names that a new account cannot have: accounts of the system, and its groups without an account."""
    accounts = {one.pw_name: one.pw_uid for one in pwd.getpwall()}
    system = {name for name, uid in accounts.items() if uid < FIRST_UID}
    return sorted(system | {one.gr_name for one in grp.getgrall() if one.gr_gid < FIRST_UID} - set(accounts))


def local_accounts() -> set[str]:
    """Return the names of the host's own accounts; those of a directory are elsewhere."""
    return {line.partition(":")[0] for line in LOCAL.read_text().splitlines()}


def account(name: str) -> pwd.struct_passwd | None:
    """Return an account, of the host or of a directory; a directory may not list all that it has."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def holder(uid: int) -> str:
    """Return the name of the account with a UID; empty if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def wrong_uid(name: str, uid: int | None) -> tuple[str, str] | None:
    """Return why a person cannot have this UID, or this home, on this host, and what to do. None stands for any UID."""
    person = account(name)
    if uid is not None:
        if person and person.pw_uid != uid:
            cure = f"Set `uid: {person.pw_uid}` for {name} in platform_users, or change the account with usermod"
            return f"the account {name} has UID {person.pw_uid}, not {uid}", cure
        if not person and (other := holder(uid)):
            return f"UID {uid} is that of the account {other}", f"Set another `uid` for {name} in platform_users"
    home = Path(person.pw_dir) if person else HOMES / name
    owner = home.stat().st_uid if home.exists() else 0
    if owner not in (0, NOBODY, person.pw_uid if person else uid):  # 0 and nobody: a share may not say whose it is
        has = f", but the account has UID {person.pw_uid}" if person else ""
        cure = f"Hosts that share homes need one UID for each person: set `uid: {owner}` for {name} in platform_users"
        return f"the home {home} belongs to UID {owner}{has}", cure
    return None


def ensure_system_group(module: AnsibleModule, name: str) -> bool:
    """Create a system group; tell whether it was missing."""
    try:
        grp.getgrnam(name)
    except KeyError:
        if not module.check_mode:
            made("group", name)
            module.run_command(["groupadd", "--system", name], check_rc=True)
        return True
    return False


def ensure_system_user(module: AnsibleModule, name: str) -> bool:
    """Create or correct a system user without a login shell; tell whether that changed anything."""
    if name in PACKAGED:
        return False
    home = f"/var/lib/{name}"
    options = ["--shell", NOLOGIN, name]
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        if not module.check_mode:
            made("account", name)
        command = ["useradd", "--system", "--user-group", "--home-dir", home, "--no-create-home", *options]
    else:
        if (user.pw_dir, user.pw_shell) == (home, NOLOGIN):
            return False
        command = ["usermod", "--home", home, *options]
    if not module.check_mode:
        module.run_command(command, check_rc=True)
    return True
