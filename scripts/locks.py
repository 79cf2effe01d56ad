"""Export every host program's dependency group from uv.lock to its role, with hashes.

`--check` changes nothing and exits 1 when an export no longer equals the lock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

GROUPS = {
    "mlflow-server": "mlflow",
    "prefect-server": "prefect_server",
    "prefect-worker": "prefect_worker",
    "inference": "inference",
    "workstation": "workstation",
}
"""Dependency group in pyproject.toml → role that installs it."""

HEADER = "# Exported from uv.lock by `make locks`; change pyproject.toml instead.\n"


def export(group: str) -> str:
    """Return the hash-locked requirements of one dependency group.

    Raises subprocess.CalledProcessError when uv.lock does not match pyproject.toml.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "export", "--locked", "--quiet", "--only-group", group, "--no-emit-project"]
    command += ["--no-annotate", "--no-header", "--format", "requirements.txt"]
    return HEADER + subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def target(role: str) -> Path:
    """Return where the export of a role's group stands."""
    return ROOT / "roles" / role / "files" / "requirements.txt"


def stale() -> list[str]:
    """Return the roles whose committed export differs from uv.lock."""
    return [
        role for group, role in GROUPS.items() if not target(role).exists() or target(role).read_text() != export(group)
    ]


def main() -> int:
    """Write the exports, or compare them with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args().check:
        differing = stale()
        for role in differing:
            print(f"roles/{role}/files/requirements.txt differs from uv.lock: run `make locks`", file=sys.stderr)
        return 1 if differing else 0
    for group, role in GROUPS.items():
        target(role).parent.mkdir(parents=True, exist_ok=True)
        target(role).write_text(export(group))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
