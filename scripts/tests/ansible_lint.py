"""Run ansible-lint, its syntax checks in a process that has loaded Ansible already.

ansible-lint starts `ansible-playbook --syntax-check` for every playbook and every role. Each would import Ansible,
which takes about as long as the check itself.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any


class Subprocess:
    """The module `subprocess`, except that ansible-playbook is forked from a process that has loaded it."""

    @staticmethod
    def run(command: list[str], *, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as `subprocess.run` does."""
        if command[0] != "ansible-playbook":
            return subprocess.run(command, env=env, **options)
        # Not at the top: each fork imports this module again.
        from scripts.tests.warm_ansible import ansible_playbook

        os.environ.update(env)  # the same for all checks, and read when the first one loads Ansible
        return ansible_playbook(*command[1:])

    def __getattr__(self, name: str) -> Any:
        """Return whatever else the module has."""
        return getattr(subprocess, name)


def main() -> None:
    """Run ansible-lint with this program's arguments; it ends the process with its exit code."""
    # By name, so that mypy does not check the sources of ansible-lint.
    runner: Any = importlib.import_module("ansiblelint.runner")
    program: Any = importlib.import_module("ansiblelint.__main__")
    runner.subprocess = Subprocess()
    sys.argv[0] = "ansible-lint"
    program._run_cli_entrypoint()


if __name__ == "__main__":
    main()
