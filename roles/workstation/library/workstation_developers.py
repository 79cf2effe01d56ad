#!/usr/bin/python
"""Make developers' accounts with their own keys in place, all of them in one call."""

from __future__ import annotations

import configparser
import io
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: workstation_developers
short_description: Developers have accounts, and their keys lie where clients look for them
description:
  - Makes an account per developer and, in its home, C(~/.aws/credentials), C(~/.pgpass) and C(~/.ssh/authorized_keys).
  - Of the first two only the platform's entry is touched; what else a person keeps there stays. The third holds
    exactly the listed keys, if any are listed.
  - Works in a home as its owner, so a link that somebody laid there leads no further than the owner may go.
options:
  developers:
    type: list
    elements: dict
    required: true
    description: Mappings with name, access_key, secret_key and, optionally, ssh_public_keys.
  raw_database:
    type: dict
    description: Mapping with host, port, name, user and password; absent means that there is none.
"""

RETURN = """
done: {type: list, elements: str, returned: always, description: Paths written and accounts made.}
"""

PROFILE = "default"
FIRST_UID = 1000
"""Accounts below are the system's and its services'."""


def aws_credentials(text: str, access_key: str, secret_key: str) -> str:
    """Return the file's text with this key in its default profile; the same text if it is there already."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # No more than the first line: the others quote the file, which holds secrets.
        raise ValueError(f"~/.aws/credentials is no INI file: {str(error).splitlines()[0]}") from error
    wanted = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
    if parser.has_section(PROFILE) and wanted.items() <= dict(parser.items(PROFILE)).items():
        return text
    if not parser.has_section(PROFILE):
        parser.add_section(PROFILE)
    for name, value in wanted.items():
        parser.set(PROFILE, name, value)
    written = io.StringIO()
    parser.write(written)
    return written.getvalue()


def pgpass(text: str, database: dict[str, Any]) -> str:
    """Return the file's text with this database's password in the first line: libpq takes the first that fits."""
    fields = [str(database[name]) for name in ("host", "port", "name", "user", "password")]
    escaped = [field.replace("\\", "\\\\").replace(":", "\\:") for field in fields]
    line, place = ":".join(escaped), ":".join(escaped[:4]) + ":"
    lines = text.splitlines()
    if line in lines:
        return text
    return "".join(f"{kept}\n" for kept in [line, *(other for other in lines if not other.startswith(place))])


@contextmanager
def acting_as(person: pwd.struct_passwd) -> Iterator[None]:
    """Do what follows with the person's rights; needs root unless the person is who runs this."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    mask = os.umask(0o077)
    if before[0] != person.pw_uid:
        os.setgroups(os.getgrouplist(person.pw_name, person.pw_gid))
        os.setegid(person.pw_gid)
        os.seteuid(person.pw_uid)
    try:
        yield
    finally:
        if before[0] != person.pw_uid:
            os.seteuid(before[0])
            os.setegid(before[1])
            os.setgroups(before[2])
        os.umask(mask)


def read(path: Path) -> str:
    """Return a file's text, or nothing when there is none."""
    return path.read_text() if path.exists() else ""


def keep(path: Path, text: str, dry: bool) -> bool:
    """See to it that the file holds this text and is its owner's alone; tell whether that was not so."""
    path = path.resolve()
    if path.exists() and path.read_text() == text and path.stat().st_mode & 0o777 == 0o600:
        return False
    if not dry:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(text)
        fresh.replace(path)
    return True


def furnish(person: pwd.struct_passwd, wants: dict[str, Any], database: dict[str, Any] | None, dry: bool) -> list[str]:
    """Put a developer's keys into the home; return the paths that were not as wanted."""
    home = Path(person.pw_dir)
    credentials, passwords, logins = home / ".aws/credentials", home / ".pgpass", home / ".ssh/authorized_keys"
    with acting_as(person):
        texts = {credentials: aws_credentials(read(credentials), wants["access_key"], wants["secret_key"])}
        if database:
            texts[passwords] = pgpass(read(passwords), database)
        if wants["ssh_public_keys"] is not None:
            texts[logins] = "".join(f"{key.strip()}\n" for key in wants["ssh_public_keys"])
        return [str(path) for path, text in texts.items() if keep(path, text, dry)]


def converge(module: AnsibleModule) -> list[str]:
    """Make every account and furnish its home; return what was done."""
    done = []
    accounts = {person.pw_name for person in pwd.getpwall()}
    for wants in module.params["developers"]:
        name = wants["name"]
        if name not in accounts:
            done.append(name)
            if module.check_mode:
                continue
            module.run_command(
                ["useradd", "--create-home", "--user-group", "--shell", "/bin/bash", name], check_rc=True
            )
        person = pwd.getpwnam(name)
        if person.pw_uid < FIRST_UID:
            module.fail_json(msg=f"{name} is an account of the system; the developer needs another login name.")
        try:
            done += furnish(person, wants, module.params["raw_database"], module.check_mode)
        except (OSError, ValueError) as error:
            module.fail_json(msg=f"The home of {name} cannot be furnished; {name} should look at it: {error}")
    return done


def main() -> None:
    """Read the arguments and converge."""
    text = {"type": "str", "required": True}
    secret = {**text, "no_log": True}
    module = AnsibleModule(
        argument_spec={
            "developers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": text,
                    "ssh_public_keys": {"type": "list", "elements": "str", "no_log": False},
                    "access_key": {**text, "no_log": False},
                    "secret_key": secret,
                },
            },
            "raw_database": {
                "type": "dict",
                "options": {"host": text, "port": text, "name": text, "user": text, "password": secret},
            },
        },
        supports_check_mode=True,
    )
    done = converge(module)
    module.exit_json(changed=bool(done), done=done)


if __name__ == "__main__":
    main()
