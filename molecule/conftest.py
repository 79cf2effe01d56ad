"""Fixtures that several scenarios share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.tests.warm_ansible import ansible_playbook

Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def play() -> Play:
    """Return a function that runs the scenario's converge playbook again with other variables."""
    playbook = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"

    def run(*options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        inventory = os.environ["MOLECULE_INVENTORY_FILE"]
        return ansible_playbook("--inventory", inventory, *options, playbook, "--extra-vars", json.dumps(variables))

    return run
