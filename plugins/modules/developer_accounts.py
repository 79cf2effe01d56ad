#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Create developers' accounts with their own keys, all in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: developer_accounts
short_description: Create developers' accounts, and put their keys where clients look for them
description:
  - Creates an account per developer and, in its home, C(~/.aws/credentials), C(~/.mlflow/credentials),
    C(~/.prefect/profiles.toml), C(~/.config/metalworks/inference_token), C(~/.pgpass) and C(~/.ssh/authorized_keys).
  - Changes only the platform's entries in these files. C(authorized_keys) holds exactly the listed keys, if any are.
  - Locks an account that it created and that is no longer listed, and ends its processes. Its files stay.
  - Takes an account of a directory, such as LDAP, as it is. Puts the keys into its home, creates the home if it is
    missing, and neither changes nor locks the account.
  - Never touches the account that Ansible logged in with. Fails before any change if that account is listed.
  - Works in a home with its owner's rights, so a link there leads no further than the owner may go.
options:
  developers:
    type: list
    elements: dict
    required: true
    description: Accounts to create.
    suboptions:
      name: {type: str, required: true, description: Login name.}
      uid: {type: int, description: UID of a new account. Fails before any change if the account has another.}
      ssh_public_keys: {type: list, elements: str, description: Keys that may log in. Omit to leave the file alone.}
      password: {type: str, required: true, description: Password for MLflow and Prefect.}
      access_key: {type: str, required: true, description: Access key of the object store.}
      secret_key: {type: str, required: true, description: Secret key of the object store.}
      inference_token: {type: str, required: true, description: Token for the inference services.}
      email: {type: str, required: true, description: Address in Git commits of a person who has set no identity.}
  raw_database:
    type: dict
    description: Database with the team's raw data. Omit if there is none.
    suboptions:
      host: {type: str, required: true, description: Host of the server.}
      port: {type: str, required: true, description: Port of the server.}
      name: {type: str, required: true, description: Name of the database.}
      user: {type: str, required: true, description: Login.}
      password: {type: str, required: true, description: Password of the login.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Create accounts
  metalworks.platform.developer_accounts:
    developers:
      - name: ada
        password: "{{ vault_user_passwords.ada }}"
        access_key: ada
        secret_key: "{{ vault_object_store_secret_keys.ada }}"
        inference_token: "{{ vault_inference_tokens.ada }}"
        email: ada@example.org
"""

RETURN = r"""
done:
  type: list
  elements: str
  returned: always
  description: Accounts and files that were (or in check mode would be) changed.
"""

import base64
import configparser
import grp
import io
import json
import os
import pwd
import re
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..module_utils.before import made
from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import UNCHANGED, read, replace
from ..module_utils.system_user import FIRST_UID, account, ensure_system_group, local_accounts, login_account, wrong_uid

PREFECT_PROFILE = "metalworks"
MEMBERS = "metalworks-people"
"""Group of the accounts that this module created, to recognise those that are no longer listed."""


def ini(text: str, name: str, section: str, wanted: dict[str, str]) -> str:
    """Return the text of an INI file with these values in a section; unchanged if it already has them."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Only the first line of the error: the others quote the file, which contains secrets.
        raise ValueError(f"~/{name} is not a valid INI file: {str(error).splitlines()[0]}") from error
    if parser.has_section(section) and wanted.items() <= dict(parser.items(section)).items():
        return text
    if not parser.has_section(section):
        parser.add_section(section)
    for key, value in wanted.items():
        parser.set(section, key, value)
    written = io.StringIO()
    parser.write(written)
    return written.getvalue()


def prefect_login(name: str, password: str) -> dict[str, str]:
    """Return Prefect's settings for a login, twice: not all clients send the first one when they open a WebSocket."""
    header = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    return {
        "PREFECT_API_AUTH_STRING": f"{name}:{password}",
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": header}),
    }


def prefect_profiles(text: str, wanted: dict[str, str]) -> str:
    """Return Prefect's profiles with these settings in the active one; unchanged if it already has them."""
    try:
        known = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"~/.prefect/profiles.toml is not a valid TOML file: {error}") from error
    profiles = {name: dict(values) for name, values in known.get("profiles", {}).items()}
    active = known.get("active", PREFECT_PROFILE)
    profile = profiles.setdefault(active, {})
    if wanted.items() <= profile.items():
        return text
    profile.update(wanted)
    lines = [f"active = {json.dumps(active)}"]
    for name, values in profiles.items():
        lines += ["", f"[profiles.{json.dumps(name)}]", *(f"{key} = {json.dumps(values[key])}" for key in values)]
    return "\n".join(lines) + "\n"


def git_identity(text: str, other: str, name: str, email: str) -> str:
    """Return a file of Git's settings with an identity, unless it or the other file has one or includes others."""
    if re.search(r"^\s*\[\s*(?:user|include)", f"{text}\n{other}", re.IGNORECASE | re.MULTILINE):
        return text
    ended = text if not text or text.endswith("\n") else f"{text}\n"
    return f"{ended}[user]\n\tname = {name}\n\temail = {email}\n"


def pgpass(text: str, database: dict[str, Any]) -> str:
    """Return the file's text with this database's password in the first line: libpq uses the first match."""
    fields = [str(database[name]) for name in ("host", "port", "name", "user", "password")]
    escaped = [field.replace("\\", "\\\\").replace(":", "\\:") for field in fields]
    line, place = ":".join(escaped), ":".join(escaped[:4]) + ":"
    lines = text.splitlines()
    if line in lines:
        return text
    return "".join(f"{kept}\n" for kept in [line, *(other for other in lines if not other.startswith(place))])


@contextmanager
def acting_as(person: pwd.struct_passwd) -> Iterator[None]:
    """Run a block with the person's rights; needs root unless the person runs this."""
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


def keep(path: Path, text: str, dry: bool) -> bool:
    """Make the file hold this text, readable by its owner only; tell whether that changed anything."""
    path = path.resolve()
    if path.exists() and path.read_text() == text and path.stat().st_mode & 0o777 == 0o600:
        return False
    if not dry:
        replace(path, text, 0o600, group=UNCHANGED, owner=UNCHANGED)
    return True


def expired(name: str) -> bool:
    """Tell whether an account has expired, by the date in /etc/shadow."""
    for line in Path("/etc/shadow").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return fields[7] != "" and int(fields[7]) * 86400 < time.time()
    return False


def close(home: Path, dry: bool) -> list[str]:
    """Close a home to other users: programs leave files there that they assume to be private."""
    mode = home.stat().st_mode & 0o7777
    if not mode & 0o007:
        return []
    if not dry:
        home.chmod(mode & ~0o007)
    return [str(home)]


def furnish(person: pwd.struct_passwd, wants: dict[str, Any], database: dict[str, Any] | None, dry: bool) -> list[str]:
    """Put a developer's keys into the home; return the paths that changed."""
    home = Path(person.pw_dir)
    aws, mlflow, prefect = home / ".aws/credentials", home / ".mlflow/credentials", home / ".prefect/profiles.toml"
    passwords, logins, settings = home / ".pgpass", home / ".ssh/authorized_keys", home / ".gitconfig"
    name, password = wants["name"], wants["password"]
    key = {"aws_access_key_id": wants["access_key"], "aws_secret_access_key": wants["secret_key"]}
    tracking = {"mlflow_tracking_username": name, "mlflow_tracking_password": password}
    with acting_as(person):
        texts = {
            aws: ini(read(aws), ".aws/credentials", "default", key),
            mlflow: ini(read(mlflow), ".mlflow/credentials", "mlflow", tracking),
            prefect: prefect_profiles(read(prefect), prefect_login(name, password)),
            home / ".config/metalworks/inference_token": f"{wants['inference_token']}\n",
        }
        if database:
            texts[passwords] = pgpass(read(passwords), database)
        if wants["ssh_public_keys"] is not None:
            texts[logins] = "".join(f"{key.strip()}\n" for key in wants["ssh_public_keys"])
        known = read(settings)
        named = git_identity(known, read(home / ".config/git/config"), name, wants["email"])
        if named != known:  # else the file is the person's business, its mode too
            texts[settings] = named
        return close(home, dry) + [str(path) for path, text in texts.items() if keep(path, text, dry)]


def converge(module: HostModule) -> list[str]:
    """Create every account and set up its home; return what was done."""
    done = []
    local = local_accounts()
    members = {name for group in grp.getgrall() if group.gr_name == MEMBERS for name in group.gr_mem}
    way_in = login_account()
    if way_in in {wants["name"] for wants in module.params["developers"]}:
        module.fail_json(
            msg=f"{way_in} is the account that Ansible logs in with, and would get other keys; choose another name for "
            "the developer, or another ansible_user"
        )
    for wants in module.params["developers"]:
        if fault := wrong_uid(wants["name"], wants["uid"]):
            module.fail_json(msg=f"{fault[0]}. {fault[1]}")
    if way_in in members:
        module.warn(
            f"{way_in} is no longer listed, but stays open: Ansible logs in with it. Set another ansible_user, and the "
            f"next run locks it; or keep it with `gpasswd --delete {way_in} {MEMBERS}`"
        )
    if module.params["developers"] and ensure_system_group(module, MEMBERS):
        done.append(MEMBERS)
    for name in sorted(members - {wants["name"] for wants in module.params["developers"]}):
        if name in local and name != way_in and not expired(name):
            done.append(f"lock {name}")
            if not module.check_mode:
                # End open sessions too; pkill exits with 1 if there are none.
                module.run_command(["usermod", "--lock", "--expiredate", "1", name], check_rc=True)
                module.run_command(["pkill", "--signal", "KILL", "--uid", name])
    for wants in module.params["developers"]:
        name, person = wants["name"], account(wants["name"])
        if not person:
            done.append(name)
            if module.check_mode:
                continue
            number = [] if wants["uid"] is None else ["--uid", str(wants["uid"])]
            made("person", name)
            create = ["useradd", "--create-home", "--user-group", "--shell", "/bin/bash", *number, name]
            module.run_command(create, check_rc=True)
            person = pwd.getpwnam(name)
            local.add(name)
        if person.pw_uid < FIRST_UID:
            module.fail_json(
                msg=f"{name} is a system account (UID below {FIRST_UID}); choose another login name for the developer"
            )
        if name not in local and not Path(person.pw_dir).exists():
            done.append(person.pw_dir)
            if module.check_mode:
                continue
            module.run_command(["/usr/sbin/mkhomedir_helper", name, "0077"], check_rc=True)  # as a first login would
        if name in local and (name not in members or expired(name)):
            done.append(f"unlock {name}")
            if not module.check_mode:
                module.run_command(
                    ["usermod", "--append", "--groups", MEMBERS, "--expiredate", "", name], check_rc=True
                )
        try:
            done += furnish(person, wants, module.params["raw_database"], module.check_mode)
        except (OSError, ValueError) as error:
            module.fail_json(
                msg=f"cannot write the keys of {name} to {person.pw_dir}; ask {name} to correct this: {error}"
            )
    return done


def main() -> None:
    """Read the arguments and converge."""
    text = {"type": "str", "required": True}
    secret = {**text, "no_log": True}
    module = HostModule(
        argument_spec={
            "developers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": text,
                    "uid": {"type": "int"},
                    "ssh_public_keys": {"type": "list", "elements": "str", "no_log": False},
                    "password": secret,
                    "access_key": {**text, "no_log": False},
                    "secret_key": secret,
                    "inference_token": secret,
                    "email": text,
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
