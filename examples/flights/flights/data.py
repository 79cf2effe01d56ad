"""DVC on a worker, where the project is an archive of a commit and no Git repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from flights.versions import LOCK


def make(months: list[str]) -> str:
    """Prepare these months, put them in the store; what dvc.lock then says."""
    params = Path("params.yaml")
    params.write_text(yaml.safe_dump(yaml.safe_load(params.read_text()) | {"months": months}, sort_keys=False))
    _dvc("repro", "prepare")
    _dvc("push", "prepare")
    return LOCK.read_text()


def get(lock: str) -> None:
    """Get from the store exactly the data that this dvc.lock names."""
    LOCK.write_text(lock)
    _dvc("pull", "prepare")


def _dvc(*arguments: str) -> None:
    """Run DVC; what it says is printed, and so gets into a flow's log."""
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    done = subprocess.run(["dvc", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    done.check_returncode()
