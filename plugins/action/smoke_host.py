"""Run module smoke_host; a host that cannot be looked at becomes a verdict of its own instead of a failed task."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """Return `checks`, or `unchecked`: why there are none."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Hand the arguments to the module; in check mode there is nothing to look at yet."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            done: dict[str, Any] = self._execute_module(task_vars=task_vars)
        except AnsibleError as error:
            done = {"failed": True, "msg": str(error.message)}
        if done.get("failed"):
            reason = str(done.get("module_stderr") or done["msg"])
            return result | {"unchecked": " ".join(reason.split())}
        return result | done
