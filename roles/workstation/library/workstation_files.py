#!/usr/bin/python
"""Files, parts of files and links of root, in one call instead of a round trip for each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: workstation_files
short_description: Files, parts of files and links of root
description:
  - Files are root's, readable by all, and replaced in one step; missing folders above them are made.
options:
  files: {type: dict, default: {}, description: Path and content of files that are Ansible's alone.}
  blocks: {type: dict, default: {}, description: Path and content of a part of files that others write too.}
  links: {type: dict, default: {}, description: Path and target of symbolic links; a file in their place is replaced.}
"""

RETURN = """
paths: {type: list, elements: str, returned: always, description: What was (in check mode would be) changed.}
"""

BEGIN = "# BEGIN metalworks workstation"
END = "# END metalworks workstation"


def with_block(text: str, block: str) -> str:
    """Return the text with the block between its marks: where it stands already, or at the end."""
    marked = f"{BEGIN}\n{block.rstrip()}\n{END}\n"
    before, begin, rest = text.partition(f"{BEGIN}\n")
    if not begin:
        return before + ("\n" if before and not before.endswith("\n") else "") + marked
    return before + marked + rest.partition(f"{END}\n")[2]


def read(path: Path) -> str:
    """Return a file's text, or nothing when there is none."""
    return path.read_text() if path.exists() else ""


def put(path: Path, text: str, dry: bool) -> bool:
    """Make the file hold the text; tell whether that, its owner or its mode was not so."""
    if path.exists() and path.read_text() == text:
        facts = path.stat()
        if (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (0, 0, 0o644):
            return False
    if not dry:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchown(handle, 0, 0)
            os.fchmod(handle, 0o644)
        Path(fresh).replace(path)
    return True


def link(path: Path, target: str, dry: bool) -> bool:
    """Make the link point at the target; tell whether that was not so."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    if not dry:
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(path)
    return True


def main() -> None:
    """Read the arguments and converge."""
    kinds = ("files", "blocks", "links")
    module = AnsibleModule(
        argument_spec={kind: {"type": "dict", "default": {}} for kind in kinds}, supports_check_mode=True
    )
    files, blocks, links = (module.params[kind] for kind in kinds)
    dry = module.check_mode
    os.umask(0o022)
    paths = [path for path, text in files.items() if put(Path(path), text, dry)]
    paths += [path for path, block in blocks.items() if put(Path(path), with_block(read(Path(path)), block), dry)]
    paths += [path for path, target in links.items() if link(Path(path), target, dry)]
    module.exit_json(changed=bool(paths), paths=paths)


if __name__ == "__main__":
    main()
