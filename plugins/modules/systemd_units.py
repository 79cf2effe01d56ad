#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Write systemd units and make sure that the running processes were started from them, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_units
short_description: Run systemd services and wait until they are healthy
description:
  - Writes C(/etc/metalworks/<name>.env) and C(/etc/systemd/system/<name>.service) for each unit, then enables and
    starts the service.
  - Restarts a service when what its process was started from differs from what is on disk. The unit copies a digest
    to C(/run/metalworks) when it starts, so the decision survives a play that was killed.
  - Gives a unit with a schedule a timer, C(/etc/systemd/system/<name>.timer), which starts it.
  - Sandboxes every unit. Use O(units[].service) to loosen or tighten a unit's sandbox.
  - Reports a unit that systemd would refuse before it writes anything.
extends_documentation_fragment:
  - metalworks.platform.systemd_units
  - metalworks.platform.managed_files
  - metalworks.platform.managed_files.links
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run the service
  metalworks.platform.systemd_units:
    units:
      - name: demo
        user: demo
        command: /opt/metalworks/demo/current/bin/demo --port 8000
        environment: {TOKEN: "{{ demo_token }}"}
        health_url: http://127.0.0.1:8000/health

- name: Clean up every night
  metalworks.platform.systemd_units:
    units:
      - name: demo-clean
        user: demo
        command: /opt/metalworks/demo/current/bin/demo clean
        schedule: {calendar: "03:00", random_delay: 1h}
"""

RETURN = r"""
actions:
  type: dict
  returned: success
  description: What was done to each unit. One of none, enabled, started, restarted, scheduled and removed.
paths: {type: list, elements: str, returned: success, description: Files and links that were changed.}
"""


from ..module_utils import systemd_units
from ..module_utils.host_module import HostModule
from ..module_utils.managed_files import SPEC as FILES
from ..module_utils.managed_files import Files


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={**{name: FILES[name] for name in ("directories", "files", "links")}, **systemd_units.SPEC},
        supports_check_mode=True,
    )
    files = Files(module)
    files.converge(module.params)
    actions = systemd_units.converge(module, module.params["units"], module.params["family"])
    changed = bool(files.paths) or any(action != "none" for action in actions.values())
    module.exit_json(changed=changed, actions=actions, paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
