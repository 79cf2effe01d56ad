"""Fixtures that several scenarios share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.tests.warm_ansible import ansible_playbook

LEDGER = (Path(__file__).parent / "shared/ledger.py").read_text()
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def play() -> Play:
    """Return a function that runs the scenario's converge playbook again with other variables."""
    playbook = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"

    def run(*options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        inventory = os.environ["MOLECULE_INVENTORY_FILE"]
        return ansible_playbook("--inventory", inventory, *options, playbook, "--extra-vars", json.dumps(variables))

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return a playbook's output without the breaks of long lines."""
    return " ".join(done.stdout.split())


def ledger(host: str, write: int = 0, tag: str = "") -> dict[str, Any]:
    """Write to MLflow and Prefect, whose servers run on this host, and return all that is there."""
    secrets = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "inventory/group_vars/all/vault.yml"
    password = yaml.safe_load(secrets.read_text())["vault_mlflow_admin_password"]
    orders = json.dumps({"password": password, "write": write, "tag": tag})
    argv = ["docker", "exec", "--interactive", host, "python3", "-c", LEDGER]
    done = subprocess.run(argv, input=orders, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
