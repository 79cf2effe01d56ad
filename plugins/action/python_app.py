"""Tell module python_app which lock and package to use, and send a host those that it lacks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils.controller_build import build
from .systemd_units import hide_environments

WHEELS = "/opt/metalworks/wheels"
INQUIRY = "pending_migrations.py"
"""The program that a new release answers, in role python_app's files."""
RELAY = "relay.py"
"""The program that hands keep-alives of Docker's containers on, there too."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Takes the same options as the module."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module, and again after sending the files that it lacks."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        args["units"] = hide_environments(args.get("units", []))
        project = args.pop("project", False)
        lock = Path(self._find_needle("files", args.pop("requirements")))
        args["settings"] = json.dumps(args.pop("environment", {}), sort_keys=True, default=str)
        if args.get("databases"):
            args["inquiry"] = Path(self._find_needle("files", INQUIRY)).read_text()
        if args.get("runtime") == "docker":
            args["relay"] = Path(self._find_needle("files", RELAY)).read_text()
        args["lock"] = f"{args['root']}/lock/{lock.name}"
        args["lock_sha256"] = hashlib.sha256(lock.read_bytes()).hexdigest()
        sources = {args["lock"]: lock}
        if project:
            wheel = build("the project's package", "scripts.site.build_wheel")
            # The folder above the wheel is named after the digest of its sources.
            args["wheel"] = f"{WHEELS}/{wheel.parent.name}/{wheel.name}"
            sources[args["wheel"]] = wheel
        done = self._execute_module(module_args=args, task_vars=task_vars)
        if done.get("missing") and not self._task.check_mode and not done.get("failed"):
            for place in done["missing"]:
                sent = self._send(sources[place], place, task_vars)
                if sent.get("failed"):
                    return result | sent
            done = self._execute_module(module_args=args, task_vars=task_vars)
        return result | dict(done)

    def _send(self, source: Path, place: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Copy a file to the host with module copy."""
        task = self._task.copy()
        task.args = {"src": str(source), "dest": place, "owner": "root", "group": "root", "mode": "0644"}
        copy = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return dict(copy.run(task_vars=task_vars))
