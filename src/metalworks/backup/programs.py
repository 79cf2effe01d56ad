"""Run the programs that do the work, and make their last words the error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from metalworks.errors import CommandError

WORDS = 5
"""Last lines of a failed program that are quoted."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment without what would change the programs' ways, such as AWS_CA_BUNDLE or PGHOST.

    In UTC: rclone writes times in the local zone, and after a change to summer time every object would look new.
    """
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "LANG")}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "TZ": "UTC", **kept, **(more or {})}


def run(argv: Sequence[str | Path], doing: str, given: bytes = b"", more: Mapping[str, str] | None = None) -> bytes:
    """Run a program and return what it prints; raise CommandError with its last words if it fails."""
    try:
        done = subprocess.run(
            [str(one) for one in argv], input=given, capture_output=True, check=False, env=environment(more), cwd="/"
        )
    except FileNotFoundError:
        raise CommandError(f"{doing}: {argv[0]} is not installed; run site.yml") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-WORDS:]
        raise CommandError(f"{doing}: {' | '.join(said) or f'{argv[0]} ended with {done.returncode}'}")
    return done.stdout
