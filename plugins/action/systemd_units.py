"""Hand the units' environments to module systemd_units as one text each, which Ansible then hides as a whole.

As mappings, each of their values would be taken for a secret, and words like `true` and `5000` be blotted out of what
a failure says.
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
    """The same options as the module's."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = {**self._task.args, "units": hide_environments(self._task.args.get("units", []))}
        return result | dict(self._execute_module(module_args=args, task_vars=task_vars))
