#!/usr/bin/python
"""One version of uv on the host, from the Python index, checked by its hash."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: base_uv
short_description: uv in one version, hash-checked
description:
  - Installs the wheel with pip, which honours the host's index and certificates, and keeps its one program.
  - The program is put in its place as the last step, so it is never half there.
options:
  version: {type: str, required: true, description: Version that is wanted.}
  requirements: {type: str, required: true, description: Requirements file with that version and its hashes.}
  path: {type: path, required: true, description: Where the program stands.}
"""

RETURN = """
version: {type: str, returned: always, description: Version that stands when the call ends.}
"""


def standing(module: AnsibleModule, path: Path) -> str:
    """Return the version of the program that stands; empty when there is none that runs."""
    if not path.exists():
        return ""
    found = re.match(r"uv (\S+)", module.run_command([str(path), "--version"])[1])
    return found.group(1) if found else ""


def main() -> None:
    """Read the arguments and converge."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={"version": text, "requirements": text, "path": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    wants, path = module.params, Path(module.params["path"])
    if not re.search(rf"^uv=={re.escape(wants['version'])}\s", wants["requirements"], re.MULTILINE):
        module.fail_json(msg=f"the requirements hold no hashes of uv {wants['version']}; `make locks` writes them")
    changed = standing(module, path) != wants["version"]
    if changed and not module.check_mode:
        with tempfile.TemporaryDirectory(prefix="metalworks-uv-") as scratch:
            locked = Path(scratch, "requirements.txt")
            locked.write_text(wants["requirements"])
            module.run_command([sys.executable, "-m", "venv", f"{scratch}/venv"], check_rc=True)
            options = ["--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
            pip = [f"{scratch}/venv/bin/python", "-m", "pip", "install", *options, "--requirement", str(locked)]
            module.run_command(pip, check_rc=True)
            draft = path.with_name(f".{path.name}.draft")
            shutil.copyfile(f"{scratch}/venv/bin/uv", draft)
            draft.chmod(0o755)
            draft.replace(path)
        if (now := standing(module, path)) != wants["version"]:
            module.fail_json(msg=f"{path} says it is version {now!r}, not {wants['version']}")
    module.exit_json(changed=changed, version=wants["version"])


if __name__ == "__main__":
    main()
