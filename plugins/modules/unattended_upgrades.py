#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Configure unattended-upgrades and the timers that start it, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unattended_upgrades
short_description: Configure unattended-upgrades and its timers
description:
  - Writes the settings if apt can read them and if Python can read the regular expressions in them.
  - Enables and starts apt's timers.
options:
  settings: {type: str, required: true, description: Content of the file.}
  never: {type: list, elements: str, required: true, description: Regular expressions in it.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Upgrade daily
  metalworks.platform.unattended_upgrades:
    settings: "{{ lookup('ansible.builtin.template', 'unattended-upgrades.j2') }}"
    never: ["nvidia-.*"]
"""

RETURN = r"""
actions: {type: list, elements: str, returned: success, description: What was (or in check mode would be) done.}
"""

import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.replace_file import diff, read, replace
from ..module_utils.systemctl import show

FOLDER = Path("/etc/apt/apt.conf.d")
# Sorts after the files of the distribution's packages and installer.
OURS = FOLDER / "90metalworks-unattended-upgrades"
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")


def unreadable(patterns: list[str]) -> list[str]:
    """Return the patterns that are invalid or that apt's quotes cannot hold, each with the reason."""
    wrong = []
    for pattern in patterns:
        if not pattern or re.search(r'["\n]', pattern):
            wrong.append(f"{pattern!r} (empty, or with a quote or a line break)")
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            wrong.append(f"{pattern!r} ({error})")
    return wrong


def idle_timers(module: AnsibleModule) -> list[tuple[str, str]]:
    """Return the verb and the timer of each systemctl call that is needed."""
    todo = []
    for timer in TIMERS:
        state = show(module, timer, "ActiveState", "UnitFileState")
        if state["UnitFileState"] == "masked":
            todo.append(("unmask", timer))
        if state["UnitFileState"] != "enabled":
            todo.append(("enable", timer))
        if state["ActiveState"] != "active":
            todo.append(("start", timer))
    return todo


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "str", "required": True},
            "never": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    settings, actions, changes = module.params["settings"], [], []
    if wrong := unreadable(module.params["never"]):
        module.fail_json(msg=f"unattended_upgrades_never: not a valid regular expression: {', '.join(wrong)}")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as draft:
        draft.write(settings)
        draft.flush()
        code, _, err = module.run_command(["apt-config", "--config-file", draft.name, "dump"])
    if code:
        module.fail_json(msg=f"apt rejects the settings; the old ones stay in use: {err.strip()}")
    old = read(OURS)
    if old != settings or OURS.stat().st_mode & 0o777 != 0o644:
        actions.append(f"write {OURS}")
        changes.append(diff(OURS, old, settings))
        if not module.check_mode:
            replace(OURS, settings)
    for verb, timer in idle_timers(module):
        actions.append(f"{verb} {timer}")
        if not module.check_mode:
            module.run_command(["systemctl", "--quiet", verb, timer], check_rc=True)
    module.exit_json(changed=bool(actions), actions=actions, diff=changes)


if __name__ == "__main__":
    main()
