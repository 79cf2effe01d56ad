"""Run module smoke_host; a host that cannot be checked is reported as such, and the task does not fail."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """Return `checks`, or in `unchecked` why there are none."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Pass the arguments to the module, and turn its failure into `unchecked`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            done: dict[str, Any] = self._execute_module(task_vars=task_vars)
        except AnsibleError as error:
            done = {"failed": True, "msg": str(error.message)}
        if done.get("failed"):
            reason = str(done.get("module_stderr") or done["msg"])
            return result | {"unchecked": " ".join(reason.split())}
        return result | done
