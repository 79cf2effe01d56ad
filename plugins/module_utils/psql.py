"""Run SQL in a cluster of this host as its superuser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def data_folder(version: str, cluster: str) -> Path:
    """Return the folder that holds a cluster's data."""
    return Path(f"/var/lib/postgresql/{version}/{cluster}")


def psql(module: AnsibleModule, data: Path, text: str) -> tuple[int, str, str]:
    """Run statements up to the first error; return psql's exit code, output and errors."""
    # The running server's port, which differs from the wanted one until a restart applies a change.
    port = (data / "postmaster.pid").read_text().splitlines()[3]
    command = ["runuser", "-u", "postgres", "--", "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
    command += ["--set", "ON_ERROR_STOP=1", "--port", port, "--dbname", "postgres", "--file", "-"]
    code, out, err = module.run_command(command, data=text, cwd="/")
    return int(code), str(out), str(err)


def name(identifier: str) -> str:
    """Quote an identifier."""
    return '"' + identifier.replace('"', '""') + '"'
