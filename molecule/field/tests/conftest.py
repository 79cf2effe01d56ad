"""The hosts as their operator reaches them: over SSH on another port, as an ordinary user with sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

SSH_CONFIG = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "ssh_config")


def reach(name: str) -> Host:
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(SSH_CONFIG), sudo=True)


@pytest.fixture(scope="session")
def services() -> Host:
    return reach("field-services")


@pytest.fixture(scope="session")
def dev() -> Host:
    return reach("dev.field.example")
