#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Install a hash-locked Python program: its release, files and services, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_app
short_description: Install a hash-locked Python environment and run its services
description:
  - Builds C(<root>/releases/<id>) and points C(<root>/current) at it. The id is a digest of lock, package and
    interpreter version, so the same input is no work.
  - Marks a release as complete in the last step. A release without the mark is what a killed run left, and is rebuilt.
  - Sends lock and package from the controller only when the host does not have them.
  - Then writes files and runs services, as M(metalworks.platform.managed_files) and
    M(metalworks.platform.systemd_units)
    do. One call does all three because each call is a round trip to every host.
options:
  root: {type: path, required: true, description: Folder of the program.}
  user: {type: str, default: "", description: System user of the program. Created if it does not exist. Empty for none.}
  requirements: {type: str, required: true, description: Requirements file with hashes on the controller.}
  project: {type: bool, default: false, description: Whether to install the project's own package without dependencies.}
  python: {type: path, required: true, description: Interpreter of the environment.}
  keep: {type: int, default: 2, description: Complete releases to keep besides the current one.}
  databases:
    description:
      - Databases whose schema the release migrates with Alembic. Before another release becomes the current one, it
        says which migrations it has still to make there, and is refused unless O(migrate) allows them.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {type: str, required: true, description: Name for messages.}
      url: {type: str, required: true, description: URL as SQLAlchemy reads it.}
      scripts: {type: str, required: true, description: Alembic's folder below C(site-packages).}
      versions: {type: str, default: "", description: "Folder of the migrations there, if not C(versions) in it."}
      table: {type: str, default: alembic_version, description: Table that holds the revision.}
  environment: {type: dict, default: {}, description: Environment in which the release asks its databases.}
  migrate: {type: bool, default: false, description: Whether the release may migrate the databases.}
  stage: {type: bool, default: false, description: Only build the release and ask the databases; run nothing.}
  runtime:
    description: What the units' commands run in. The same release, user, files, network and sockets in each.
    type: str
    choices: [native, podman, docker]
    default: native
  image:
    description: Image of the containers, pulled if the host lacks it. Empty for a base of the host's own packages.
    type: str
    default: ""
extends_documentation_fragment:
  - metalworks.platform.managed_files
  - metalworks.platform.managed_files.blocks
  - metalworks.platform.managed_files.links
  - metalworks.platform.systemd_units
author: Metalworks (!UNKNOWN)
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
missing: {type: list, elements: str, returned: always, description: Files that the host must be sent first.}
release: {type: str, returned: success, description: Id of the current release.}
before: {type: str, returned: with O(stage), description: Id of the release that was current so far.}
migrations:
  type: list
  elements: dict
  returned: with O(stage)
  description: Databases with their revisions, those of the release, and what is pending.
versions: {type: dict, returned: with O(stage), description: Packages of the release and of the one before.}
removed:
  type: list
  elements: str
  returned: when a release was built
  description: Ids of releases that were removed.
actions: {type: dict, returned: success, description: What was done to each unit.}
paths: {type: list, elements: str, returned: success, description: Files that were changed.}
"""


from ..module_utils import container, python_release, systemd_units
from ..module_utils.host_module import HostModule
from ..module_utils.managed_files import SPEC as FILES
from ..module_utils.managed_files import Files


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={
            **python_release.SPEC,
            **container.SPEC,
            **FILES,
            **systemd_units.SPEC,
        },
        supports_check_mode=True,
    )
    wants = module.params
    engines = {wants["runtime"], *container.engines(wants["units"])} - {container.NATIVE}
    made = container.prepare(module, wants)
    result = python_release.converge(module, wants)
    if wants["stage"] or (result["missing"] and not module.check_mode):
        module.exit_json(**result)
    files = Files(module)
    files.converge(wants)
    actions = systemd_units.converge(module, wants["units"], wants["family"])
    if not module.check_mode and any(action != "none" for action in actions.values()):
        for engine in engines:
            container.prune(module, engine)
    changed = made or result["changed"] or files.paths or any(action != "none" for action in actions.values())
    module.exit_json(**{**result, "changed": bool(changed)}, actions=actions, paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
