#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Directories, files, parts of files and links, in one call."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.managed_files import SPEC, Files

DOCUMENTATION = r"""
module: managed_files
short_description: Directories, files, parts of files and links, in one call
description:
  - Each module call is a round trip to every host, and small files are most of what a converged run looks at.
    This does what C(file), C(copy), C(blockinfile) and C(template) do, for many paths at once.
  - A file is replaced in one step, and is never readable by more than its mode allows. Missing folders above it are
    made (root's, 0755).
options:
  directories:
    description: Directories that exist.
    type: list
    elements: dict
    default: []
    suboptions: &owned
      path: {description: Absolute path., type: path, required: true}
      owner: {description: User., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: 'Mode; quoted. Default: 0755 of a directory, 0644 of a file.', type: str}
  files:
    description: Files that are Ansible's alone.
    type: list
    elements: dict
    default: []
    suboptions:
      <<: *owned
      content: {description: Whole content., type: str}
      secret: {description: 'The same, of a file whose content belongs into no log and no diff.', type: str}
      validate: {description: 'Command that judges the new content in the file C(%s) before it counts.', type: str}
  blocks:
    description: Parts of files that others write too. Owner and mode of a file that is there stay.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      name: {description: What the marks before and after the part call it., type: str, required: true}
      content: {description: The part., type: str, required: true}
  links:
    description: Symbolic links, path → target. A file in the place of one is replaced.
    type: dict
    default: {}
author: Metalworks
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
paths: {type: list, elements: str, returned: always, description: What was (in check mode would be) changed.}
"""


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    files = Files(module)
    files.converge(module.params)
    module.exit_json(changed=bool(files.paths), paths=files.paths, diff=files.diff)


if __name__ == "__main__":
    main()
