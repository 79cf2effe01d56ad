#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""A locked Python program on a host: its release, its files and its services, in one call."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import python_release, systemd_units
from ..module_utils.managed_files import SPEC as FILES
from ..module_utils.managed_files import Files

DOCUMENTATION = r"""
module: python_app
short_description: A hash-locked Python environment is the current release, and its services run from it
description:
  - Makes C(<root>/releases/<id>), where the id is the digest of lock, package and interpreter version, and points
    C(<root>/current) at it. The same input is no work.
  - A marker is written last. A release without it is what a killed install left, and is removed first; a failed
    install is removed too. C(current) does not move before the release is complete.
  - Lock and package are on the controller; the host is sent them when it has others.
  - Then writes files and runs services as modules managed_files and systemd_units do. Three calls in one, because each
    is a round trip to every host.
options:
  root: {type: path, required: true, description: Folder of the program.}
  user: {type: str, default: "", description: System user that the program runs as; made if absent. Empty for none.}
  requirements: {type: str, default: "", description: Requirements file with hashes, on the controller.}
  remote_requirements: {type: str, default: "", description: The same on the host, for locks that are made there.}
  project: {type: bool, default: false, description: Install the project's own package too, without dependencies.}
  python: {type: path, required: true, description: Interpreter of the environment.}
  keep: {type: int, default: 2, description: Complete releases to keep besides the current one.}
  directories: {type: list, elements: dict, default: [], description: As in module managed_files.}
  files: {type: list, elements: dict, default: [], description: As in module managed_files.}
  blocks: {type: list, elements: dict, default: [], description: As in module managed_files.}
  links: {type: dict, default: {}, description: As in module managed_files.}
  units: {type: list, elements: dict, default: [], description: As in module systemd_units.}
  family: {type: str, default: "", description: As in module systemd_units.}
author: Metalworks
"""

EXAMPLES = r"""
- name: Run the program
  metalworks.platform.python_app:
    root: /opt/metalworks/demo
    user: demo
    requirements: requirements.txt
    python: /usr/bin/python3
    units: [{name: demo, user: demo, command: /opt/metalworks/demo/current/bin/demo}]
"""

RETURN = r"""
missing: {type: list, elements: str, returned: always, description: Places of what the host has to be sent first.}
release: {type: str, returned: success, description: Id of the current release.}
actions: {type: dict, returned: success, description: "Name of a unit → what was done to it."}
paths: {type: list, elements: str, returned: success, description: Files that were changed.}
"""


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            **python_release.SPEC,
            **FILES,
            **systemd_units.SPEC,
        },
        supports_check_mode=True,
    )
    wants = module.params
    result = python_release.converge(module, wants)
    if result["missing"] and not module.check_mode:
        module.exit_json(**result)
    files = Files(module)
    files.converge(wants)
    actions = systemd_units.converge(module, wants["units"], wants["family"])
    changed = result["changed"] or files.paths or any(action != "none" for action in actions.values())
    module.exit_json(**{**result, "changed": bool(changed)}, actions=actions, paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
