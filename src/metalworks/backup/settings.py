"""What the role `backup` tells the program: /etc/metalworks/backup.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalworks.errors import CommandError

SETTINGS = Path("/etc/metalworks/backup.json")


@dataclass(frozen=True)
class BackupSettings:
    """Where things are, and what is kept; the role's argument spec explains each."""

    passphrase: str
    target: dict[str, Any]
    store: dict[str, Any]
    buckets: list[str]
    databases: list[str]
    postgresql_bin: Path
    postgresql_port: int
    postgresql_data: Path = Path("/nonexistent")
    postgresql_sockets: Path = Path("/run/postgresql")
    keep_sets: int = 14
    full_days: int = 7
    max_age_hours: int = 30
    rehearse_max_age_days: int = 35
    same_host: bool = False
    pgbackrest: Path = Path("/etc/metalworks/pgbackrest.conf")
    stanza: str = "metalworks"
    state: Path = Path("/var/lib/metalworks-backup")
    vault_copy: str = ""
    empty_tables: list[str] = field(default_factory=list)
    site: dict[str, str] = field(default_factory=dict)
    releases: Path = Path("/opt/metalworks")

    @property
    def folder(self) -> Path | None:
        """The target's folder, or None if it is an S3."""
        return Path(self.target["path"]) if "path" in self.target else None


PATHS = ("postgresql_bin", "postgresql_sockets", "postgresql_data", "pgbackrest", "state", "releases")


def load(path: Path = SETTINGS) -> BackupSettings:
    """Read the settings."""
    try:
        given: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist: set backup_target in your site and run site.yml") from None
    except PermissionError:
        raise CommandError(f"{path} cannot be read: run this as the user postgres") from None
    return BackupSettings(**(given | {name: Path(given[name]) for name in PATHS if name in given}))
