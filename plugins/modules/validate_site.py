#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Document the action plugin of the same name, which runs on the controller alone."""

DOCUMENTATION = r"""
module: validate_site
short_description: Check a site as a whole, and fail with every problem of it and of its hosts
description:
  - Checks groups, names, addresses, variables, secrets and files of the inventory, adds the problems that
    M(metalworks.platform.validate_host) found, and fails with one numbered list. Changes nothing.
  - Runs on the controller. Run it once per play.
options:
  product: {type: path, required: true, description: Folder that holds C(group_vars) and C(roles).}
  homes: {type: list, elements: str, required: true, description: Groups that a host must be in one of.}
  required_groups: {type: list, elements: str, required: true, description: Groups that need a host.}
  required_home: {type: str, required: true, description: Group to list a missing host under.}
  single_groups: {type: list, elements: str, required: true, description: Groups that may have one host only.}
  replaced_groups: {type: list, elements: str, required: true, description: Groups that the site does without.}
  optional_groups: {type: dict, required: true, description: What a site lacks by optional group without a host.}
  unique: {type: dict, required: true, description: Fields that must be unique by the name of a list variable.}
  reserved: {type: list, elements: str, required: true, description: Names that people may not have.}
  schema: {type: path, required: true, description: JSON Schema of the site's choices.}
  keys: {type: dict, required: true, description: Keys that a mapping of secrets must have by its name.}
  renamed: {type: dict, required: true, description: New names of variables by their old ones.}
  given: {type: list, elements: str, required: true, description: Secrets whose strength the site cannot choose.}
  cure: {type: str, required: true, description: 'How to add a missing secret. C({inventory}) becomes the inventory.'}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Reject input that would fail later
  run_once: true
  metalworks.platform.validate_site:
    product: "{{ role_path | dirname | dirname }}"
    homes: [platform]
    required_groups: [gateway]
    required_home: platform
    single_groups: [gateway]
    replaced_groups: []
    optional_groups: {}
    unique: {}
    reserved: [root]
    schema: choices.yml
    keys: {}
    renamed: {}
    given: []
    cure: "Run `make secrets INVENTORY={inventory}`"
"""

RETURN = r"""
msg: {type: str, returned: always, description: 'How many hosts were checked, or every problem with its remedy.'}
"""
