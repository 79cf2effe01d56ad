"""Builds, on the controller, what plays send to hosts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible.errors import AnsibleActionFail

# Resolves the links of a checkout; an installed collection has none.
PRODUCT = Path(__file__).resolve().parents[2]


def build(what: str, *command: str) -> Path:
    """Run a Python module of the product with its options, and return the path that it prints.

    Raises AnsibleActionFail with the module's output if the build of `what` fails.
    """
    built = subprocess.run([sys.executable, "-m", *command], cwd=PRODUCT, capture_output=True, text=True, check=False)
    if built.returncode:
        raise AnsibleActionFail(f"Cannot build {what}: {built.stderr.strip()}")
    return Path(built.stdout.strip())
