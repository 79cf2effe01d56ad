"""The module class of everything here that writes to a host."""

from __future__ import annotations

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class HostModule(AnsibleModule):  # type: ignore[misc]
    """An AnsibleModule that creates files and directories with a plain umask.

    Hardening guides set a umask of 027 or 077 for logins and sudo. Services could not read what a module creates below
    a directory of root's under such a mask. What must be private gets its mode by name.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Set the umask, then read the options as AnsibleModule does."""
        os.umask(0o022)
        super().__init__(*args, **options)
