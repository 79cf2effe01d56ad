#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Make the running processes of systemd services those that their units describe, in one call."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import systemd_units
from ..module_utils.managed_files import SPEC as FILES
from ..module_utils.managed_files import Files

DOCUMENTATION = r"""
module: systemd_units
short_description: Systemd services are what is said here, and are healthy
description:
  - For each unit, writes C(/etc/metalworks/<name>.env) and C(/etc/systemd/system/<name>.service), enables and starts
    the service, and restarts it when what it was started from differs from what stands on disk.
  - Every unit is sandboxed; what one needs beyond that, its C(service) sets again.
  - A unit stamps C(/etc/metalworks/<name>.revision) into C(/run/metalworks/<name>.revision) when it starts, so the
    decision needs no memory of earlier plays and survives one that was killed. No kept module knows what a process
    was started from.
  - A unit that systemd would refuse is reported before anything is written.
options:
  units:
    description: Services.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {type: str, required: true, description: Unit without C(.service).}
      description: {type: str, description: 'What C(systemctl status) shows; if none is given, the name.'}
      user: {type: str, required: true, description: System user of the process; made if absent.}
      group: {type: str, description: 'Group of the process; also reads the environment file. Default: as the user.'}
      command: {type: str, required: true, description: Command line; the program by its absolute path.}
      prestart:
        type: list
        elements: str
        default: []
        description: Commands that run to their end before the process starts, with its user and environment.
      environment:
        type: dict
        default: {}
        description: Environment of the process. Secrets belong here; root and the group alone read the file.
      after:
        type: list
        elements: str
        default: [network-online.target]
        description: Units it starts after and wants.
      service: {type: dict, default: {}, description: 'More of the C([Service]) section; a list gives several lines.'}
      health_url: {type: str, default: "", description: URL that answers 200 when the service works.}
      health_socket: {type: str, default: "", description: Unix socket that the URL is asked on instead of its host.}
      health_timeout: {type: int, default: 120, description: Seconds to become healthy.}
      restart_on:
        type: list
        elements: path
        default: []
        description: Files and folders, besides unit and environment, whose content the process depends on.
  directories: {type: list, elements: dict, default: [], description: 'Made first, as in module managed_files.'}
  files: {type: list, elements: dict, default: [], description: 'Made first, as in module managed_files.'}
  links: {type: dict, default: {}, description: 'Made first, as in module managed_files.'}
  family:
    type: str
    default: ""
    description: Pattern of names, like C(demo-*). Services of ours with such a name that are not listed are removed.
author: Metalworks
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
"""

RETURN = r"""
actions:
  type: dict
  returned: success
  description: "Name of a unit → none, enabled, started, restarted or removed."
paths: {type: list, elements: str, returned: success, description: Files and links that were changed.}
"""


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
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
