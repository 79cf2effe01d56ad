# Copyright Metalworks. Apache-2.0.
"""Pack a Python package on the controller into the text of one program."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: python_program
short_description: Pack a Python package into the text of one program
description:
  - Returns a program for the standard input of a host's Python, or for a file there, that has a folder of Python files
    as a package and leaves no file of it behind.
  - The same files give the same text.
options:
  _terms: {description: Folders of packages on the controller., required: true}
  module: {type: str, required: true, description: The package's module whose function C(main) the program defines.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run a package
  ansible.builtin.command:
    argv: [python3, "-"]
    stdin: "{{ lookup('metalworks.platform.python_program', '/srv/package', module='run') }}"
"""

RETURN = r"""
_raw: {description: Text of the program for each folder., type: list, elements: str}
"""

# Python imports from a zip file by its path, which a file in memory has, too.
PROGRAM = """\
import base64, json, os, sys
held = os.memfd_create({name!r})
with open(held, "wb", closefd=False) as file:
    file.write(base64.b64decode({held!r}))
sys.path.insert(0, f"/proc/self/fd/{{held}}")
from {name}.{module} import main
"""


def packed(folder: Path) -> bytes:
    """Return a zip file with the package."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"{folder.name}/{path.name}"), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return held.getvalue()


def program(folder: Path, module: str) -> str:
    """Return the program."""
    if not (folder / f"{module}.py").exists():
        raise AnsibleLookupError(f"{folder} has no module {module}")
    return PROGRAM.format(name=folder.name, module=module, held=base64.b64encode(packed(folder)).decode())


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
        """Return the text for each folder."""
        self.set_options(var_options=variables, direct=options)
        return [program(Path(term), self.get_option("module")) for term in terms]
