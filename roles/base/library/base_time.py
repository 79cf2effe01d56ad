#!/usr/bin/python
"""Time synchronisation with chrony, in one call."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: base_time
short_description: chrony runs where a host keeps its own time
description:
  - Enables and starts chrony, gives it time servers, and has systemd start it again whenever it ends.
  - A container has no clock of its own, and the unit's own condition keeps chrony from starting there. That is no
    failure, and is reported as C(runs=false); any other reason is one.
options:
  servers: {type: list, elements: str, default: [], description: Time servers; empty means the distribution's.}
"""

RETURN = """
runs: {type: bool, returned: success, description: Whether chrony runs.}
"""

UNIT = "chrony.service"
SOURCES = Path("/etc/chrony/sources.d/metalworks.sources")
ADDITION = Path(f"/etc/systemd/system/{UNIT}.d/metalworks.conf")
# The distribution's unit stays dead after a kill, and clocks that differ break certificates and signed requests.
RESTART = """\
# Ansible managed
[Unit]
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=3
"""


def show(module: AnsibleModule) -> dict[str, str]:
    """Return what systemd knows of the unit."""
    names = "LoadState,ActiveState,UnitFileState,ConditionResult,ConditionTimestampMonotonic,Restart,NeedDaemonReload"
    out = module.run_command(["systemctl", "show", UNIT, "--property", names], check_rc=True)[1]
    return dict(line.split("=", 1) for line in out.splitlines())


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={"servers": {"type": "list", "elements": "str", "default": []}}, supports_check_mode=True
    )
    state = show(module)
    if state["LoadState"] != "loaded":
        if not module.check_mode:
            module.fail_json(msg=f"{UNIT} is {state['LoadState']}")
        module.exit_json(changed=True, runs=False)
    text = "".join(f"server {server} iburst\n" for server in module.params["servers"])
    rewrite = text != (SOURCES.read_text() if SOURCES.exists() else "")
    known = state["Restart"] == "always" and state["NeedDaemonReload"] == "no"
    restarts = known and ADDITION.exists() and ADDITION.read_text() == RESTART
    # systemd has looked at the condition before, and it did not hold: looking again would only fill the journal.
    kept_out = state["ConditionResult"] == "no" and state["ConditionTimestampMonotonic"] != "0"
    enable, start = state["UnitFileState"] != "enabled", state["ActiveState"] != "active" and not kept_out
    if module.check_mode:
        module.exit_json(changed=rewrite or enable or start or not restarts, runs=state["ActiveState"] == "active")
    if rewrite:
        SOURCES.parent.mkdir(parents=True, exist_ok=True)
        SOURCES.write_text(text)
    if not restarts:
        ADDITION.parent.mkdir(parents=True, exist_ok=True)
        ADDITION.write_text(RESTART)
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    if enable:
        module.run_command(["systemctl", "--quiet", "enable", UNIT], check_rc=True)
    if start:
        module.run_command(["systemctl", "start", UNIT])
        state = show(module)
        if state["ActiveState"] != "active" and state["ConditionResult"] == "yes":
            command = ["journalctl", "--unit", UNIT, "--lines", "20", "--no-pager", "--output", "cat"]
            said = module.run_command(command)[1]
            module.fail_json(msg=f"{UNIT} is {state['ActiveState']}. Last lines of its journal:\n{said}")
    runs = state["ActiveState"] == "active"
    if runs:
        # Cheap, and nothing happens where the servers are the same; so no restart is owed to anybody.
        module.run_command(["chronyc", "reload", "sources"], check_rc=True)
    module.exit_json(changed=rewrite or enable or (start and runs) or not restarts, runs=runs)


if __name__ == "__main__":
    main()
