"""Build the docs site on the controller, and send it to a host that has another one."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils.controller_build import build


class ActionModule(ActionBase):  # type: ignore[misc]
    """Takes the same options as the module."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module, and again with the archive if the host lacks it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        source = build("the docs site", "scripts.docs.site", "--archive")
        # The folder above the archive is named after the digest of its sources.
        args = dict(self._task.args) | {"release": source.parent.name}
        done = self._execute_module(module_args=args, task_vars=task_vars)
        if not done.get("missing") or self._task.check_mode or done.get("failed"):
            return result | dict(done)
        try:
            folder = self._make_tmp_path()
            args["archive"] = self._connection._shell.join_path(folder, source.name)
            self._transfer_file(str(source), args["archive"])
            self._fixup_perms2((folder, args["archive"]))
            done = self._execute_module(module_args=args, task_vars=task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result | dict(done)
