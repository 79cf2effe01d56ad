#!/usr/bin/python
"""Directories and small files of root, in one call instead of two round trips for each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: base_files
short_description: Directories and small files of root
description:
  - Directories (0755) and files (0644) of root exist; a file is replaced in one step.
options:
  directories: {type: list, elements: path, default: [], description: Directories that exist.}
  files: {type: dict, default: {}, description: Path and content of files that exist.}
"""

RETURN = """
paths: {type: list, returned: always, description: What was (in check mode would be) changed.}
"""


def owned(path: Path, mode: int) -> bool:
    """Tell whether a path belongs to root with this mode."""
    facts = path.stat()
    return (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (0, 0, mode)


def write(path: Path, content: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as sink:
        sink.write(content)
    Path(draft).chmod(0o644)
    Path(draft).replace(path)


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "default": []},
            "files": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    paths, diff = [], []
    for path in map(Path, module.params["directories"]):
        if path.is_dir() and owned(path, 0o755):
            continue
        paths.append(str(path))
        if not module.check_mode:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, 0, 0)
            path.chmod(0o755)
    for path, content in ((Path(name), text) for name, text in module.params["files"].items()):
        old = path.read_text() if path.exists() else ""
        if path.exists() and old == content and owned(path, 0o644):
            continue
        paths.append(str(path))
        diff.append({"before_header": str(path), "after_header": str(path), "before": old, "after": content})
        if not module.check_mode:
            write(path, content)
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
