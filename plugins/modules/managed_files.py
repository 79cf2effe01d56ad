#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Manage directories, files, blocks of lines and links in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Manage directories, files, blocks of lines and links in one call
description:
  - Does what C(file), C(copy), C(blockinfile) and C(template) do, for many paths at once. Each module call is a round
    trip to every host, and small files are most of what a converged run looks at.
  - Replaces a file in one step, and never makes it readable by more than its permissions allow.
  - Creates missing parent folders with owner root and permissions 0755.
extends_documentation_fragment:
  - metalworks.platform.managed_files
  - metalworks.platform.managed_files.blocks
  - metalworks.platform.managed_files.links
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the settings of a service
  metalworks.platform.managed_files:
    directories: [{path: /etc/metalworks/demo, mode: "0750", group: demo}]
    files:
      - {path: /etc/metalworks/demo/settings.ini, content: "[demo]\n", group: demo, mode: "0640"}
      - {path: /etc/metalworks/demo/password, secret: "{{ demo_password }}", group: demo, mode: "0640"}
    blocks:
      - {path: /etc/hosts, name: "Metalworks: names", content: "192.0.2.1 demo"}
    links: {/usr/local/bin/demo: /opt/metalworks/demo/current/bin/demo}
"""

RETURN = r"""
paths: {type: list, elements: str, returned: always, description: Paths that were (or in check mode would be) changed.}
"""


from ..module_utils.host_module import HostModule
from ..module_utils.managed_files import SPEC, Files


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(argument_spec=SPEC, supports_check_mode=True)
    files = Files(module)
    files.converge(module.params)
    module.exit_json(changed=bool(files.paths), paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
