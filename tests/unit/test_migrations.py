"""roles/python_app: what a release says of its databases, by MLflow's and Prefect's real migrations."""

from __future__ import annotations

import functools
import json
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory

from tests.unit.repository import ROOT, load

release = load("plugins/module_utils/python_release.py")

PROGRAM = ROOT / "roles/python_app/files/pending_migrations.py"
PACKAGES = Path(sysconfig.get_path("purelib"))
MLFLOW = {"name": "mlflow", "scripts": "mlflow/store/db_migrations", "versions": "", "table": "alembic_version"}
AUTH = {
    "name": "mlflow_auth",
    "scripts": "mlflow/server/auth/db/migrations",
    "versions": "",
    "table": "alembic_version_auth",
}
PREFECT = {
    "name": "prefect",
    "scripts": "prefect/server/database/_migrations",
    "versions": "prefect/server/database/_migrations/versions/sqlite",
    "table": "alembic_version",
}


def chain(database: dict[str, Any]) -> list[str]:
    """Return the revisions of the installed package, oldest first."""
    return list(revisions(database["scripts"], database["versions"]))


@functools.cache
def revisions(folder: str, versions: str) -> tuple[str, ...]:
    """Return the revisions below site-packages, oldest first."""
    scripts = ScriptDirectory(
        str(PACKAGES / folder), version_locations=[str(PACKAGES / versions)] if versions else None
    )
    return tuple(step.revision for step in scripts.walk_revisions())[::-1]


def stored(place: Path, revision: str | None, table: str = "alembic_version") -> str:
    """Make a database at a revision (None: that never had one); return its path."""
    with sqlite3.connect(place) as database:
        database.execute("create table runs (id text)")
        if revision:
            database.execute(f"create table {table} (version_num varchar(32) primary key)")
            database.execute(f"insert into {table} values ('{revision}')")
    return str(place)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what the program says of these databases. All at once, because it imports MLflow with its migrations."""
    folder = tmp_path_factory.mktemp("databases")
    main, auth, prefect = chain(MLFLOW), chain(AUTH), chain(PREFECT)
    places = {
        "behind": (MLFLOW, stored(folder / "behind.db", main[-3])),
        "current": (AUTH, stored(folder / "current.db", auth[-1], AUTH["table"])),
        "newer": (MLFLOW, stored(folder / "newer.db", "fffffffffff0")),
        "empty": (MLFLOW, str(folder / "empty.db")),
        "without a revision": (MLFLOW, stored(folder / "old.db", None)),
        "asynchronous": (PREFECT, stored(folder / "prefect.db", prefect[-2])),
    }
    databases = [
        kind | {"name": name, "url": f"sqlite{'+aiosqlite' * (kind is PREFECT)}:///{place}"}
        for name, (kind, place) in places.items()
    ]
    command = [sys.executable, "-c", PROGRAM.read_text()]  # as module python_app does
    ran = subprocess.run(command, input=json.dumps(databases), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {one["name"]: one for one in json.loads(ran.stdout)}


def test_what_is_pending_comes_from_the_releases_own_scripts(said: dict[str, dict[str, Any]]) -> None:
    main, auth = chain(MLFLOW), chain(AUTH)
    wanted = {"name": "behind", "at": [main[-3]], "heads": [main[-1]], "pending": main[-2:], "unknown": []}
    assert said["behind"] == wanted
    assert said["current"] == {"name": "current", "at": auth[-1:], "heads": auth[-1:], "pending": [], "unknown": []}


def test_prefects_migrations_are_read_through_its_asynchronous_driver(said: dict[str, dict[str, Any]]) -> None:
    assert (said["asynchronous"]["pending"], said["asynchronous"]["unknown"]) == (chain(PREFECT)[-1:], [])


def test_a_database_of_a_newer_release_is_known_as_one(said: dict[str, dict[str, Any]]) -> None:
    assert (said["newer"]["unknown"], said["newer"]["pending"]) == (["fffffffffff0"], [])


def test_only_a_database_with_tables_has_something_to_lose(said: dict[str, dict[str, Any]]) -> None:
    assert said["empty"]["pending"] == []
    assert said["without a revision"]["pending"] == chain(MLFLOW)


@pytest.mark.parametrize(
    ("pending", "unknown", "migrate", "says"),
    [
        ([], [], False, ""),
        (["a", "b"], [], True, ""),
        (["a", "b"], [], False, "2 in database mlflow. Run playbooks/upgrade.yml"),
        ([], ["f"], True, "Database mlflow was migrated by a newer release (to f)"),
    ],
)
def test_a_release_is_refused_before_it_becomes_current(
    pending: list[str], unknown: list[str], migrate: bool, says: str
) -> None:
    state = {"name": "mlflow", "at": unknown, "heads": ["z"], "pending": pending, "unknown": unknown}
    why = release.refusal([state], migrate)
    assert says in why
    assert bool(why) == bool(says)
