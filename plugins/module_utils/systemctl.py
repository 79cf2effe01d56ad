"""Properties of systemd units."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

MANAGED = "#\n# Ansible managed\n#"
"""How every unit begins that the platform writes."""


def show(module: AnsibleModule, unit: str, *properties: str) -> dict[str, str]:
    """Return these properties of a unit by name; a property without a value is an empty string."""
    command = ["systemctl", "show", unit, "--property", ",".join(properties)]
    lines = module.run_command(command, check_rc=True)[1].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
