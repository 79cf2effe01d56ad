"""Collect every host's checks, write the verdict to a file, and fail if a check failed."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

Answers = Sequence[tuple[str, dict[str, Any]]]
"""Hosts and their results; a host may occur twice."""


def verdict(answers: Answers, measured_on: str) -> dict[str, Any]:
    """Return the content of build/smoke.json, from the hosts' results."""
    checks: list[dict[str, Any]] = []
    for host, answer in answers:
        checks += (
            {"host": host} | {key: check[key] for key in check if key != "made"} for check in answer.get("checks", ())
        )
    failures = [f"{check['name']} on {check['host']}: {check['detail']}" for check in checks if not check["ok"]]
    unchecked = {host: answer.get("unchecked", "no answer") for host, answer in answers if "checks" not in answer}
    skipped = [check for check in checks if check["skipped"]]
    slowest = max((check["seconds"] for check in checks), default=0.0)
    return {
        "ok": bool(checks) and not failures and not unchecked,
        "checks": checks,
        "failures": failures,
        "unchecked": unchecked,
        "figures": {
            "checks": len(checks),
            "checks_failed": len(failures),
            "checks_skipped": len(skipped),
            "hosts": len({host for host, _ in answers}),
            "hosts_unchecked": len(unchecked),
            "slowest_check_seconds": slowest,
        },
        "measured_on": measured_on,
    }


def summary(found: dict[str, Any]) -> str:
    """Return the verdict for people: failures first, then hosts that could not be checked."""
    figures = found["figures"]
    lines = [f"{figures['checks']} checks on {figures['hosts']} hosts, {figures['checks_failed']} failed"]
    lines += [f"FAILED {failure}" for failure in found["failures"]]
    lines += [f"COULD NOT CHECK {host}: {reason}" for host, reason in found["unchecked"].items()]
    lines += [f"nothing to check: {check['name']}: {check['detail']}" for check in found["checks"] if check["skipped"]]
    return "\n".join(lines)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Evaluate what the hosts of the play reported."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the file, then fail or report what was checked."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        names, known = variables["ansible_play_hosts_all"], variables["hostvars"]
        answer = self._task.args.get("answer", "__smoke")
        answers = [(name, known[name].get(answer, {})) for name in names]
        # Only one host delegated this task; the others' results say that they skipped it.
        removals = [known[name].get("__smoke_removed", {}) for name in names]
        answers += [
            (self._task.args.get("server", ""), each) for each in removals if each.keys() & {"checks", "unchecked"}
        ]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        machine = f"{len(names)} hosts, from {platform.node()}: {os.cpu_count()} cores, {platform.system()}, {now}"
        found = verdict(answers, machine)
        path = Path(self._task.args["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")
        return result | {"failed": not found["ok"], "msg": summary(found)}
