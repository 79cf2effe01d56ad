"""`metalworks-backup`: take, list, check and rehearse backup sets. Run it as the user postgres."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from metalworks.backup import check, database, objects, restore, status, take
from metalworks.backup.settings import SETTINGS, BackupSettings, load
from metalworks.errors import CommandError

STEPS = {
    "check": "refuse what cannot be restored, before anything is changed",
    "begin": "remember that this restore is under way",
    "database": "restore the database's folder; PostgreSQL must be stopped",
    "compare": "wait for PostgreSQL to recover, and compare it with the set",
    "objects": "copy the objects into the store, with a key that may write",
}


def listed(settings: BackupSettings, as_json: bool) -> str:
    """Return the sets, oldest first, with what each holds."""
    found: list[dict[str, Any]] = []
    with objects.rclone(settings) as remote:
        for name in objects.names(remote):
            try:
                one = objects.read(remote, name)
            except CommandError as error:
                found.append({"name": name, "error": str(error)})
                continue
            rows = sum(most for held in one.databases.values() for _, most in held.rows.values())
            found.append({"name": name, "moment": one.moment, "rows": rows, "objects": one.objects, "bytes": one.bytes})
    if as_json:
        return json.dumps(found)
    lines = [f"{'set':18}{'rows':>12}{'objects':>10}{'MB':>10}"]
    for entry in found:
        if "error" in entry:
            lines.append(f"{entry['name']:18} {entry['error']}")
        else:
            lines.append(f"{entry['name']:18}{entry['rows']:>12}{entry['objects']:>10}{entry['bytes'] / 1e6:>10.1f}")
    return "\n".join(lines) if found else "no sets yet"


def remove(settings: BackupSettings, name: str) -> str:
    """Remove a set and what only it needs."""
    with take.alone(settings), objects.rclone(settings) as remote:
        names = objects.names(remote)
        if name not in names:
            raise CommandError(f"there is no set {name}")
        stay = [objects.read(remote, other) for other in names if other != name]
        gone = objects.prune(remote, stay, [name])
    return f"removed set {name} and {gone} objects that no other set names"


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="metalworks-backup", description=__doc__)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="make the target ready, so that WAL can be archived")
    one.add_argument("--upgraded", action="store_true", help="the database has another major version than before")
    commands.add_parser("take", help="take a set now")
    commands.add_parser("list", help="list the sets").add_argument("--json", action="store_true")
    one = commands.add_parser("check", help="find out whether a set is whole")
    one.add_argument("set", nargs="?", default="", help="name of the set; default: the newest")
    one.add_argument("--everything", action="store_true", help="read all objects, not some by chance")
    one = commands.add_parser("rehearse", help="restore a set beside the living, compare, and remove it again")
    one.add_argument("set", nargs="?", default="", help="name of the set; default: the newest")
    one = commands.add_parser("status", help="say what is wrong with the backups; exits 1 if something is")
    one.add_argument("--record", type=Path, metavar="FILE", help="also write this for the start page")
    commands.add_parser("remove", help="remove a set").add_argument("set")
    for step, does in STEPS.items():  # playbooks/restore.yml calls them one after the other
        one = commands.add_parser(f"restore-{step}", help=does)
        one.add_argument("set", nargs="?", default="", help="name of the set")
        one.add_argument("--to", default="", help="a moment between sets, such as 2026-11-27T09:00 (UTC)")
        one.add_argument("--replace", action="store_true", help="replace what the hosts hold")
    return parser.parse_args(words)


def restored(settings: BackupSettings, arguments: argparse.Namespace, step: str) -> str:
    """Do a step of a restore."""
    with take.alone(settings, restore.PATIENCE_SECONDS):
        planned = restore.examine(settings, arguments.set, arguments.to, replace=arguments.replace or step != "check")
    if planned.restored:
        return f"{planned.word} is restored already ({planned.restored})"
    what = f"{planned.word}: {planned.wanted.objects} objects, database {planned.wanted.label}"
    match step:
        case "begin":
            restore.begin(settings, planned)
        case "database":
            restore.bring_database(settings, planned)
        case "compare":
            restore.compare(settings, planned)
        case "objects":
            copied = restore.bring_objects(
                settings, planned, os.environ["STORE_ACCESS_KEY"], os.environ["STORE_SECRET_KEY"]
            )
            return f"{what}; {copied} objects copied"
    return what


def act(arguments: argparse.Namespace) -> str:
    """Do what is asked and return what to print."""
    settings = load(arguments.settings)
    match arguments.command:
        case "prepare":
            try:
                return "made ready" if take.prepare(settings, upgraded=arguments.upgraded) else "ready"
            except database.ForeignError as error:  # as on new hosts, before the restore
                return str(error)
        case "take":
            made = take.take(settings)
            return f"took set {made.name}: {made.objects} objects, {made.bytes / 1e6:.1f} MB, database {made.label}"
        case "check":
            made = check.check(settings, arguments.set, everything=arguments.everything)
            return f"set {made.name} is whole"
        case "rehearse":
            made = check.rehearse(settings, arguments.set)
            return f"set {made.name} was restored beside the living, and is equal"
        case "remove":
            return remove(settings, arguments.set)
        case str(command) if command.startswith("restore-"):
            return restored(settings, arguments, command.removeprefix("restore-"))
        case "status":
            wrong, line = status.status(settings)
            if arguments.record:
                status.record(arguments.record, wrong, line)
            if wrong:
                raise CommandError("\n".join([*map(str, wrong), line]))
            return line
        case _:
            return listed(settings, arguments.json)


def main() -> None:
    """Run the command; an error is one message, without a traceback."""
    try:
        print(act(parsed(sys.argv[1:])))
    except CommandError as error:
        sys.exit(f"metalworks-backup: {error}")
    except OSError as error:
        sys.exit(f"metalworks-backup: {error}")
