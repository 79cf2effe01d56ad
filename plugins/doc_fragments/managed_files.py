"""Documentation of the options that module_utils/managed_files.py reads."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments by name; the first is what modules extend by default."""

    DOCUMENTATION = r"""
options:
  directories:
    description: Directories to create.
    type: list
    elements: dict
    default: []
    suboptions:
      path: &path {description: Absolute path., type: path, required: true}
      owner: &owner {description: User that owns it., type: str, default: root}
      group: &group {description: Group that owns it., type: str, default: root}
      mode: {description: 'Permissions in octal, quoted.', type: str, default: '0755'}
  files:
    description: Files to write whole.
    type: list
    elements: dict
    default: []
    suboptions:
      path: *path
      owner: *owner
      group: *group
      mode: {description: 'Permissions in octal, quoted.', type: str, default: '0644'}
      content: {description: Content of the file. Either this or C(secret) is required., type: str}
      secret: {description: Content that must not appear in logs and diffs., type: str}
      validate: {description: Command that checks the new content. C(%s) is the file that holds it., type: str}
"""

    BLOCKS = r"""
options:
  blocks:
    description: Blocks of lines in files that others write too. Owner and permissions of an existing file are kept.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      name: {description: Name of the block in the marker lines around it., type: str, required: true}
      content: {description: Lines of the block., type: str, required: true}
      create: {description: Whether to create a file that is missing., type: bool, default: true}
"""

    LINKS = r"""
options:
  links:
    description: Symbolic links to create, as a mapping of path to target. A link replaces a file at its path.
    type: dict
    default: {}
"""
