"""Fixtures that the tests of all hosts share."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parent.parent


class Result:
    """A run of the scenario's plays on one host."""

    def __init__(self, name: str, process: subprocess.CompletedProcess[str]) -> None:
        self.ok = process.returncode == 0
        self.text = process.stdout + process.stderr
        # Messages are wrapped at the terminal's width.
        self.words = " ".join(self.text.split())
        recap = re.search(rf"^{name} .*changed=(\d+)", process.stdout, re.MULTILINE)
        self.changed = int(recap[1]) if recap else -1


@pytest.fixture
def play(host, play) -> Callable[..., Result]:
    """Run the plays again on this test's host with other variables."""
    name = host.backend.host
    return lambda **variables: Result(name, play("--limit", name, **variables))


@pytest.fixture
def kernel(host) -> str:
    """Return the kernel whose headers are installed."""
    (path,) = host.check_output("ls -d /lib/modules/*/build").split()
    return Path(path).parent.name


@pytest.fixture
def held(host) -> Callable[[], set[str]]:
    """Return a function that lists the packages that apt holds."""
    return lambda: set(host.check_output("apt-mark showhold").split())
