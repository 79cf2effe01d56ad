"""Report which migrations a release has still to make in its databases. Runs in the release's own environment.

Reads a JSON list from standard input: `name`, SQLAlchemy's `url`, `scripts` (Alembic's folder) and perhaps `versions`
(the folder of this database's kind) below site-packages, and the `table` that holds the revision. Writes, for each,
`name`, revisions of the database (`at`) and of the release (`heads`), and the `pending` ones, oldest first.
`unknown` are revisions of the database that the release does not have: a newer release has made them. A database
without tables has nothing pending: the release sets it up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, make_url
from sqlalchemy.ext.asyncio import create_async_engine


def found(connection: Connection, table: str) -> tuple[bool, list[str]]:
    """Return whether the database has tables, and its revisions."""
    context = MigrationContext.configure(connection, opts={"version_table": table})
    return bool(inspect(connection).get_table_names()), list(context.get_current_heads())


async def ask(url: str, table: str) -> tuple[bool, list[str]]:
    """Do the same with a driver that is asynchronous."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(found, table)
    finally:
        await engine.dispose()


def compare(used: bool, at: list[str], scripts: ScriptDirectory) -> dict[str, list[str]]:
    """Return what a database with these revisions lacks."""
    known = {revision.revision for revision in scripts.walk_revisions()}
    unknown = sorted(set(at) - known)
    lacks: list[str] = []
    if used and not unknown:
        lacks = [step.revision for step in scripts.iterate_revisions("heads", tuple(at) or "base")][::-1]
    return {"at": sorted(at), "heads": sorted(scripts.get_heads()), "pending": lacks, "unknown": unknown}


def report(database: dict[str, Any], packages: Path) -> dict[str, Any]:
    """Return the state of one database."""
    url, table = database["url"], database["table"]
    if make_url(url).get_dialect().is_async:
        used, at = asyncio.run(ask(url, table))
    else:
        with create_engine(url).connect() as connection:
            used, at = found(connection, table)
    versions = [str(packages / database["versions"])] if database["versions"] else None
    scripts = ScriptDirectory(str(packages / database["scripts"]), version_locations=versions)
    return {"name": database["name"], **compare(used, at, scripts)}


def main() -> None:
    """Report on all databases."""
    packages = Path(sysconfig.get_path("purelib"))
    json.dump([report(database, packages) for database in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
