"""Pass each unit's environment to module systemd_units as one string, which Ansible then hides as a whole.

In a mapping, Ansible would treat each value as a secret, and remove words like `true` and `5000` from error messages.
"""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase


def hide_environments(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the units with JSON in place of their environments."""
    return [
        {**unit, "environment": json.dumps(unit.get("environment", {}), sort_keys=True, default=str)} for unit in units
    ]


class ActionModule(ActionBase):  # type: ignore[misc]
    """Takes the same options as the module."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = {**self._task.args, "units": hide_environments(self._task.args.get("units", []))}
        return result | dict(self._execute_module(module_args=args, task_vars=task_vars))
