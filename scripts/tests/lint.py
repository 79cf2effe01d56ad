"""Run the linters, one on each core; write the seconds that each took to build/lint.json."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from scripts.common import BUILD, ROOT, environment, lock, write_json

TIMES = BUILD / "lint.json"
# Longest first. Some rules of ansible-lint look up variables in an inventory, so give it the example's.
STEPS = {
    "ansible-lint": [sys.executable, "-m", "scripts.tests.ansible_lint"],
    "mypy": ["mypy"],
    "yamllint": ["yamllint", "."],
    "ruff": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
}


def run(command: list[str]) -> tuple[bool, str, float]:
    """Run a linter; return whether it passed, its output, and the seconds it took."""
    started = time.monotonic()
    variables = environment({"ANSIBLE_INVENTORY": "inventory/example"})
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode == 0, done.stdout, round(time.monotonic() - started, 1)


def main() -> int:
    """Run all linters, even after one has failed; return 1 if any did."""
    # Two at once: mypy waits 5 s for the other at each write to its cache, and then keeps nothing.
    with lock("lint"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ended = dict(zip(STEPS, pool.map(run, STEPS.values()), strict=True))
    for name, (content, output, seconds) in ended.items():
        print(f"{name}: {'ok' if content else 'FAILED'} ({seconds:.0f} s)")
        if not content:
            print(output.rstrip())
    write_json(TIMES, {name: seconds for name, (_, _, seconds) in ended.items()})
    return 0 if all(content for content, _, _ in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
