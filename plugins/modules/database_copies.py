#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Copy databases inside their cluster before an upgrade, and put the copies back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_copies
short_description: Copy databases within their cluster, and put the copies back
description:
  - A copy of database C(x) for upgrade C(1) is C(x_before_1), with the same owner and grants. The database that a copy
    has replaced stays as C(x_after_1).
  - Can be killed at any time; another call with the same options completes what was begun. It waits for what a killed
    run has left running on the host.
  - Ends other connections to a database when it copies or renames it, so stop those that write first.
options:
  version: {type: str, required: true, description: Major version of the cluster.}
  cluster: {type: str, default: main, description: Name of the cluster.}
  databases: {type: list, elements: str, required: true, description: Databases.}
  id: {type: str, default: "", description: Names the upgrade; digits.}
  state:
    type: str
    choices: [reported, made, put_back, removed]
    required: true
    description:
      - With V(reported), nothing is changed.
      - With V(made), copies that are missing are made.
      - With V(put_back), the copies take the place of the databases.
      - With V(removed), what was kept for other upgrades than O(id) is removed.
  counts:
    description: With V(reported), queries that return a number, each with C(database) and C(sql), by name.
    type: dict
    default: {}
  record:
    description:
      - What to note about the upgrade, added to what was noted before. A new C(id) there begins a new note.
      - With V(put_back) and V(removed), it is noted first, so that a killed call is known to have begun. With V(made),
        it is noted last, so that the note says that all copies are there.
    type: dict
    default: {}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the database
  metalworks.platform.database_copies:
    version: "15"
    databases: [mlflow]
    id: "20261129"
    state: made
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
sizes: {type: dict, returned: always, description: Bytes of each database and of what is kept of it, by name.}
free: {type: int, returned: always, description: Free bytes where the cluster's data is.}
record: {type: dict, returned: always, description: What was noted about the last upgrade.}
counts: {type: dict, returned: always, description: Numbers that the queries returned, by name.}
"""

import fcntl
import json
import re
import shutil
from pathlib import Path
from typing import Any

from ..module_utils.host_module import HostModule
from ..module_utils.psql import data_folder, name, psql
from ..module_utils.replace_file import replace

ATTEMPTS = 5
"""Clients that connect again at once can get between the end of their connections and a copy."""
STATE = """
select json_object_agg(datname, json_build_object(
  'size', pg_database_size(oid), 'owner', pg_get_userbyid(datdba), 'closed', datacl is not null,
  'grants', coalesce((select json_agg(json_build_array(pg_get_userbyid(grantee), privilege_type))
    from aclexplode(datacl) where grantee <> 0 and grantee <> datdba), '[]')))
from pg_database where not datistemplate;
"""
NOTE = Path("/var/lib/metalworks/upgrade/note.json")
"""What is known about the last upgrade, so that an interrupted one can be completed or undone."""
LOCK = Path("/run/metalworks/database_copies.lock")
"""Held by one call at a time: Ansible's modules go on when the play that called them is killed."""
KEPT = re.compile(r"(?P<database>.+)_(?:before|after)_(?P<id>\d+)(?:_draft)?")

Databases = dict[str, dict[str, Any]]


def before(database: str, upgrade: str) -> str:
    """Return the name of a database's copy."""
    return f"{database}_before_{upgrade}"


def after(database: str, upgrade: str) -> str:
    """Return the name of a database that its copy has replaced."""
    return f"{database}_after_{upgrade}"


def literal(text: str) -> str:
    """Quote a text."""
    return "'" + text.replace("'", "''") + "'"


def ending(database: str) -> str:
    """Return the statement that ends all connections to a database."""
    which = f"datname = {literal(database)} AND pid <> pg_backend_pid()"
    return f"SELECT count(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity WHERE {which} \\gset"  # noqa: S608 - quoted


def copying(database: str, copy: str, facts: dict[str, Any]) -> list[str]:
    """Return the statements that copy a database with its owner and grants."""
    # The copy's name is temporary until its grants are those of the database.
    draft = f"{copy}_draft"
    made = f"CREATE DATABASE {name(draft)} TEMPLATE {name(database)} OWNER {name(facts['owner'])} STRATEGY file_copy;"
    steps = [f"DROP DATABASE IF EXISTS {name(draft)};", ending(database), made]
    if facts["closed"]:
        steps.append(f"REVOKE ALL ON DATABASE {name(draft)} FROM PUBLIC;")
    steps += [f"GRANT {privilege} ON DATABASE {name(draft)} TO {name(role)};" for role, privilege in facts["grants"]]
    return [*steps, f"ALTER DATABASE {name(draft)} RENAME TO {name(copy)};"]


def making(standing: Databases, databases: list[str], upgrade: str) -> list[tuple[str, list[str]]]:
    """Return what makes the missing copies, each with a description."""
    return [
        (f"copy {one}", copying(one, before(one, upgrade), standing[one]))
        for one in databases
        if one in standing and before(one, upgrade) not in standing
    ]


def putting_back(standing: Databases, databases: list[str], upgrade: str) -> list[tuple[str, list[str]]]:
    """Return what puts the copies back, each with a description."""
    todo = []
    for one in databases:
        copy, gone = before(one, upgrade), after(one, upgrade)
        if copy not in standing:
            continue
        steps = []
        if one in standing:
            steps += [ending(one), f"ALTER DATABASE {name(one)} RENAME TO {name(gone)};"]
        todo.append((f"put back {one}", [*steps, ending(copy), f"ALTER DATABASE {name(copy)} RENAME TO {name(one)};"]))
    return todo


def lost(standing: Databases, databases: list[str], upgrade: str) -> list[str]:
    """Return the databases of which there is neither a copy nor what a copy has replaced."""
    return [one for one in databases if not {before(one, upgrade), after(one, upgrade)} & standing.keys()]


def removing(standing: Databases, databases: list[str], upgrade: str) -> list[tuple[str, list[str]]]:
    """Return what removes copies and replaced databases of other upgrades, each with a description."""
    todo = []
    for one in standing:
        kept = KEPT.fullmatch(one)
        if kept and kept["database"] in databases and kept["id"] != upgrade:
            todo.append((f"remove {one}", [ending(one), f"DROP DATABASE {name(one)};"]))
    return todo


class BusyError(Exception):
    """A client connected again before its database could be copied or renamed."""


class Copies:
    """The databases of a cluster and the module that acts on them."""

    def __init__(self, module: HostModule) -> None:
        """Keep the module and its parameters."""
        self.module, self.wants = module, module.params
        self.data: Path = data_folder(self.wants["version"], self.wants["cluster"])
        self.actions = list[str]()

    def fail(self, reason: str) -> None:
        """End the task with the reason."""
        self.module.fail_json(msg=reason, actions=self.actions)

    def sql(self, text: str) -> str:
        """Return the output of statements; raise BusyError if clients came between."""
        code, out, err = psql(self.module, self.data, text)
        if code and "being accessed by other users" in err:
            raise BusyError(err.strip())
        if code:
            self.fail(f"psql: {err.strip()}")
        return out

    def standing(self) -> Databases:
        """Return the databases of the cluster."""
        found: Databases = json.loads(self.sql(STATE))
        return found

    def counted(self) -> dict[str, int]:
        """Return the numbers that the queries return."""
        return {
            title: int(self.sql(f"\\connect {name(query['database'])}\n{query['sql']};").strip())
            for title, query in self.wants["counts"].items()
        }

    def note(self) -> dict[str, Any]:
        """Add to the note about the last upgrade; return it."""
        known: dict[str, Any] = json.loads(NOTE.read_text()) if NOTE.exists() else {}
        if known.get("id") != self.wants["record"].get("id", known.get("id")):
            known = {}
        wanted: dict[str, Any] = known | self.wants["record"]
        if self.wants["record"] and wanted != known:
            self.actions.append("note the upgrade")
            if not self.module.check_mode:
                NOTE.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace(NOTE, json.dumps(wanted, sort_keys=True) + "\n", 0o600, 0)
        return wanted

    def todo(self, standing: Databases) -> list[tuple[str, list[str]]]:
        """Return the steps to the wanted state."""
        databases, upgrade, state = self.wants["databases"], self.wants["id"], self.wants["state"]
        if state == "made":
            if missing := [one for one in databases if one not in standing]:
                self.fail(f"there is no database {', '.join(missing)} to copy; run site.yml first")
            return making(standing, databases, upgrade)
        if state == "put_back":
            if gone := lost(standing, databases, upgrade):
                self.fail(f"there is no copy of {', '.join(gone)} for upgrade {upgrade}; nothing was changed")
            return putting_back(standing, databases, upgrade)
        return removing(standing, databases, upgrade) if state == "removed" else []

    def act(self) -> str:
        """Bring the copies to the wanted state; return why that has to be tried again."""
        try:
            for action, steps in self.todo(self.standing()):
                if not self.module.check_mode:
                    self.sql("\n".join(steps))
                self.actions.append(action)
        except BusyError as error:
            return str(error)
        return ""

    def converge(self) -> None:
        """Bring the copies to the wanted state and report them."""
        if self.wants["state"] in ("put_back", "removed"):
            self.todo(self.standing())  # ends the task if there is nothing to put back
            self.note()
        for _ in range(ATTEMPTS):
            if not (reason := self.act()):
                break
        else:
            self.fail(f"psql: {reason}")
        record = self.note()
        ours = [*self.wants["databases"]]
        sizes = {
            one: facts["size"]
            for one, facts in self.standing().items()
            if one in ours or ((kept := KEPT.fullmatch(one)) and kept["database"] in ours)
        }
        free = shutil.disk_usage(self.data).free
        self.module.exit_json(
            changed=bool(self.actions),
            actions=self.actions,
            sizes=sizes,
            free=free,
            record=record,
            counts=self.counted(),
        )


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "default": "main"},
            "databases": {"type": "list", "elements": "str", "required": True},
            "id": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["reported", "made", "put_back", "removed"], "required": True},
            "counts": {"type": "dict", "default": {}},
            "record": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if module.params["state"] in ("made", "put_back") and not re.fullmatch(r"\d+", module.params["id"]):
        module.fail_json(msg="id must be digits")
    LOCK.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Copies(module).converge()


if __name__ == "__main__":
    main()
