"""PostgreSQL: its backups, through pgBackRest, and what is true of its databases."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metalworks.backup.programs import run
from metalworks.backup.sets import Database
from metalworks.backup.settings import BackupSettings
from metalworks.errors import CommandError

FACTS = """
with tables as (
  select n.nspname || '.' || c.relname as name, format('%I.%I', n.nspname, c.relname) as quoted
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname not in ('pg_catalog', 'information_schema')
)
select json_build_object(
  'rows', coalesce((select json_object_agg(name, json_build_array((xpath('/row/n/text()',
    query_to_xml('select count(*) as n from ' || quoted, false, true, '')))[1]::text::bigint)) from tables), '{}'),
  'revisions', coalesce((select json_object_agg(name, coalesce((xpath('/row/v/text()',
    query_to_xml($$select string_agg(version_num, ' ' order by version_num) as v from $$ || quoted,
      false, true, '')))[1]::text, '')) from tables where name like '%.alembic_version%'), '{}'))
"""
WAIT_SECONDS, POLL_SECONDS = 3600, 0.25


class Cluster:
    """A running server that its own user asks through the Unix socket."""

    def __init__(self, settings: BackupSettings, sockets: Path | None = None) -> None:
        """Take the platform's server, or one at another place."""
        self.settings, self.port = settings, settings.postgresql_port
        self.sockets = sockets or settings.postgresql_sockets

    def sql(self, text: str, database: str = "postgres") -> str:
        """Return the answer to a query."""
        command: list[str | Path] = [self.settings.postgresql_bin / "psql", "--no-psqlrc", "--quiet"]
        command += [
            "--tuples-only",
            "--no-align",
            "--set",
            "ON_ERROR_STOP=1",
            "--host",
            self.sockets,
            "--port",
            str(self.port),
        ]
        command += ["--username", "postgres", "--dbname", database, "--file", "-"]
        return run(command, f"asking PostgreSQL about {database}", text.encode()).decode().strip()

    def facts(self) -> dict[str, Database]:
        """Return the databases' schema revisions and rows."""
        return {name: Database(**json.loads(self.sql(FACTS, name))) for name in self.settings.databases}

    def restore_point(self, name: str) -> str:
        """Name this moment in the WAL and return it."""
        self.sql(f"select pg_create_restore_point('{name}')")
        return datetime.now(UTC).isoformat(timespec="seconds")

    def archiver(self) -> dict[str, Any]:
        """Return how archiving goes."""
        text = """select json_build_object('failing', last_failed_time is not null and (last_archived_time is null or
            last_failed_time > last_archived_time), 'since', coalesce(last_archived_time, stats_reset),
            'waiting', (select count(*) from pg_ls_archive_statusdir() where name like '%.ready'),
            'on', current_setting('archive_mode')) from pg_stat_archiver"""
        found: dict[str, Any] = json.loads(self.sql(text))
        return found


def pgbackrest(settings: BackupSettings, doing: str, command: str, *options: str) -> bytes:
    """Run pgBackRest on our stanza."""
    argv: list[str | Path] = ["pgbackrest", "--config", settings.pgbackrest, "--stanza", settings.stanza]
    return run([*argv, *options, command], doing)


class ForeignError(CommandError):
    """The target holds the sets of another database."""


def prepare(settings: BackupSettings, *, upgraded: bool = False) -> None:
    """Make the repository ready. Does nothing if it is; refuses one of another database or passphrase.

    A database that was `upgraded` is another one to pgBackRest; with that, the repository takes it as well.
    """
    try:
        pgbackrest(settings, "preparing the database's repository", "stanza-create")
    except CommandError as error:
        if "do not match the database" in str(error) and upgraded:
            pgbackrest(settings, "taking the upgraded database into the repository", "stanza-upgrade")
            return
        if "do not match the database" in str(error):
            raise ForeignError(
                "the target holds the sets of another database. Restore one with playbooks/restore.yml, or set "
                "backup_target to an empty place"
            ) from None
        raise


def backups(settings: BackupSettings) -> list[dict[str, Any]]:
    """Return the backups in the repository, oldest first."""
    return repository(settings)[1]


def repository(settings: BackupSettings) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Return the versions of PostgreSQL, by pgBackRest's number of the database, and the backups, oldest first."""
    info = json.loads(pgbackrest(settings, "listing the database's backups", "info", "--output", "json"))
    status = info[0]["status"] if info else {"code": 1, "message": "no stanza"}
    if status["code"] not in (0, 2):  # 2: no backup yet
        why = f"the database's backups cannot be read: {status['message']}"
        detail = [repo["status"]["message"] for repo in info[0].get("repo", ())] if info else []
        raise CommandError(f"{why} ({'; '.join(detail)}); is vault_backup_passphrase the one of this target?")
    return {one["id"]: str(one["version"]) for one in info[0].get("db", ())}, list(info[0].get("backup", ()))


def back_up(settings: BackupSettings) -> str:
    """Back the database up and return the backup's label: in full if the last full one is old."""
    full = [one for one in backups(settings) if one["type"] == "full"]
    age = datetime.now(UTC).timestamp() - full[-1]["timestamp"]["stop"] if full else None
    kind = "full" if age is None or age > settings.full_days * 86400 else "diff"
    pgbackrest(settings, "backing the database up", "backup", "--type", kind, "--no-expire-auto")
    return str(backups(settings)[-1]["label"])


def archived(settings: BackupSettings) -> None:
    """Wait until the WAL up to now is on the target."""
    pgbackrest(settings, "archiving the WAL", "check")


def expire(settings: BackupSettings, fulls: int) -> None:
    """Keep this many full backups, with what depends on them, and the WAL since the oldest."""
    pgbackrest(settings, "removing old backups of the database", "expire", "--repo1-retention-full", str(fulls))


def restore(settings: BackupSettings, label: str, to: Sequence[str], data: Path, *options: str) -> None:
    """Write a backup into a folder, from where the server recovers `to` a point."""
    given = [f"--pg1-path={data}", f"--set={label}", "--target-action=promote", *to, *options]
    pgbackrest(settings, "restoring the database", "restore", *given)


# -- A second server, beside the living one


CONFIGURATION = """\
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
port = {port}
hba_file = '{data}/pg_hba.conf'
ident_file = '{data}/pg_ident.conf'
hot_standby = off
archive_mode = off
shared_buffers = 128MB
max_wal_size = 4GB
fsync = off
ssl = off
logging_collector = off
"""


class Beside(Cluster):
    """A server that runs from a restored folder, for a rehearsal."""

    def __init__(self, settings: BackupSettings, folder: Path) -> None:
        """Keep the places; the folder is ours."""
        super().__init__(settings, folder / "sockets")
        self.data, self.log = folder / "data", folder / "log"

    def restore(self, label: str, to: Sequence[str]) -> None:
        """Restore the backup and write a configuration."""
        for path in (self.data, self.sockets):
            path.mkdir(mode=0o700, parents=True)
        tablespaces = self.data.with_name("tablespaces")
        restore(self.settings, label, to, self.data, "--archive-mode=off", f"--tablespace-map-all={tablespaces}")
        text = CONFIGURATION.format(sockets=self.sockets, port=self.port, data=self.data)
        (self.data / "postgresql.conf").write_text(text)
        (self.data / "pg_hba.conf").write_text("local all postgres peer\n")
        (self.data / "pg_ident.conf").write_text("")

    def control(self, *words: str) -> None:
        """Run pg_ctl."""
        argv: list[str | Path] = [
            self.settings.postgresql_bin / "pg_ctl",
            "-D",
            self.data,
            "-l",
            self.log,
            "-w",
            "-s",
            *words,
        ]
        try:
            run(argv, f"pg_ctl {words[-1]} on the restored database")
        except CommandError as error:
            raise CommandError(f"{error} | {self.last_words()}") from None

    def start(self) -> None:
        """Start the server and wait until it has recovered and answers."""
        self.control("-t", str(WAIT_SECONDS), "start")
        deadline = time.monotonic() + WAIT_SECONDS
        while True:  # pg_ctl does not wait for the end of the recovery
            try:
                self.sql("select 1")
                return
            except CommandError as error:
                if not (self.data / "postmaster.pid").exists() or time.monotonic() > deadline:
                    raise CommandError(f"the restored database does not recover: {self.last_words()}") from error
            time.sleep(POLL_SECONDS)

    def last_words(self) -> str:
        """Return why the server ended, or the last lines of its log."""
        said = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(
            [line for line in said if "FATAL:  the database" not in line and "FATAL" in line] or said[-3:]
        )

    def remove(self) -> None:
        """Stop it, if it runs, and remove all of it."""
        if (self.data / "postmaster.pid").exists():
            self.control("-m", "immediate", "stop")
        if self.data.parent.exists():
            shutil.rmtree(self.data.parent)
