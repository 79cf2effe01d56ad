"""Shared by the benchmarks that a playbook runs on a host of a site."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.common import ROOT, environment, failure

OK, SLOW, UNKNOWN = 0, 1, 2


def measure(name: str, inventory: str, times: int) -> dict[str, Any]:
    """Run `playbooks/<name>.yml` and return what it saved; raises RuntimeError if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen.json"
        command = ["ansible-playbook", "-i", inventory, f"playbooks/{name}.yml"]
        command += ["-e", f"{name}_times={times}", "-e", f"{name}_file={seen}"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode or not seen.exists():
            raise RuntimeError(failure(command, done.returncode, done.stderr + done.stdout, lines=20))
        found: dict[str, Any] = json.loads(seen.read_text())
        return found


def run(name: str, about: str | None, verdict: Path, report: Callable[[dict[str, Any], dict[str, Any]], bool]) -> int:
    """Measure with this program's arguments, and return the exit code.

    Without a measurement, no verdict is left. `report` gets what was measured and what it was measured on; it prints
    and saves the results, and tells whether they meet their targets.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--inventory", "-i", default="inventory/lab", help="inventory of the site (default: the lab's)")
    parser.add_argument("--times", type=int, default=5, help="measurements of each kind (default: 5)")
    options = parser.parse_args()
    verdict.unlink(missing_ok=True)
    try:
        found = measure(name, options.inventory, options.times)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    measured_on = {"inventory": options.inventory, "host": found["host"], "times": options.times}
    return OK if report(found["seen"], measured_on) else SLOW
