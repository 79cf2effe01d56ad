"""Accounts and groups of services."""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

NOLOGIN = "/usr/sbin/nologin"


def ensure_system_group(module: AnsibleModule, name: str) -> bool:
    """Create a system group; tell whether it was missing."""
    try:
        grp.getgrnam(name)
    except KeyError:
        if not module.check_mode:
            module.run_command(["groupadd", "--system", name], check_rc=True)
        return True
    return False


def ensure_system_user(module: AnsibleModule, name: str) -> bool:
    """Create or correct a system user without a login shell; tell whether that changed anything."""
    home = f"/var/lib/{name}"
    options = ["--shell", NOLOGIN, name]
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--home-dir", home, "--no-create-home", *options]
    else:
        if (user.pw_dir, user.pw_shell) == (home, NOLOGIN):
            return False
        command = ["usermod", "--home", home, *options]
    if not module.check_mode:
        module.run_command(command, check_rc=True)
    return True
