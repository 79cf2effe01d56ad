"""Export every host program's dependency group from uv.lock to its role, with hashes.

`--check` changes nothing and exits 1 when an export no longer equals the lock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.common import ROOT

GROUPS = {
    "backup": "backup/files/requirements.txt",
    "base": "base/files/requirements.txt",
    "mlflow-server": "mlflow/files/requirements.txt",
    "prefect-server": "prefect_server/files/requirements.txt",
    "prefect-worker": "prefect_worker/files/requirements.txt",
    "inference": "inference/files/requirements.txt",
    "inference-tools": "inference/files/tools.txt",
    "workstation": "workstation/files/requirements.txt",
}
"""Dependency group in pyproject.toml → file below roles/ from which its role installs it."""

HEADER = "# Exported from uv.lock by `make locks`; change pyproject.toml instead.\n"


def export(group: str) -> str:
    """Return the hash-locked requirements of one dependency group.

    Raises subprocess.CalledProcessError when uv.lock does not match pyproject.toml.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "export", "--locked", "--quiet", "--only-group", group, "--no-emit-project"]
    command += ["--no-annotate", "--no-header", "--format", "requirements.txt"]
    return HEADER + subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def stale() -> list[Path]:
    """Return the committed exports that differ from uv.lock."""
    files = {ROOT / "roles" / file: group for group, file in GROUPS.items()}
    return [file for file, group in files.items() if not file.exists() or file.read_text() != export(group)]


def main() -> int:
    """Write the exports, or compare them with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args().check:
        differing = stale()
        for file in differing:
            print(f"{file.relative_to(ROOT)} differs from uv.lock: run `make locks`", file=sys.stderr)
        return 1 if differing else 0
    for group, name in GROUPS.items():
        file = ROOT / "roles" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(export(group))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
