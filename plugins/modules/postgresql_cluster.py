#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Run a PostgreSQL cluster in a sandbox, with its settings, databases, logins and privileges, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_cluster
short_description: Configure a Debian PostgreSQL cluster with its databases and logins, and keep it running
description:
  - Writes settings and C(pg_hba.conf) only if the server accepts them; otherwise the old ones stay.
  - Starts the cluster, reloads it when its files are newer than what it loaded, and restarts it when the server reports
    that a setting waits for that.
  - Confines the unit of the cluster, and restarts a server that was started outside of that sandbox.
  - Reloads the server when it shows another certificate than the one on disk.
  - Creates databases and their owners. Removes no database. An owner connects to its own databases only.
  - Creates readers that read all data of these databases, and write nothing.
  - Connects as C(postgres) over the local socket. Passwords are sent as SCRAM verifiers on standard input.
options:
  version: {type: str, required: true, description: Major version of PostgreSQL.}
  cluster: {type: str, default: main, description: Name of the cluster.}
  settings: {type: str, required: true, description: Content of a file in C(conf.d) of the cluster.}
  hba: {type: str, required: true, description: Content of C(pg_hba.conf).}
  sandbox:
    type: str
    required: true
    description: Lines for the cluster's unit that end in its section C([Service]). The module adds the data
      directories.
  tls:
    type: dict
    required: true
    description: Certificate of the server.
    suboptions:
      certificate: {type: path, required: true, description: 'Chain in PEM, the server''s own certificate first.'}
      key: {type: path, required: true, description: Private key.}
      group: {type: str, required: true, description: Group that can read the key.}
  databases:
    type: list
    elements: dict
    required: true
    description: Databases to create.
    suboptions:
      name: {type: str, required: true, description: Name of the database.}
      owner: {type: str, required: true, description: Role that owns it and logs in.}
      password: {type: str, required: true, description: Password of the owner.}
  readers:
    type: list
    elements: dict
    default: []
    description: Roles that read all data of these databases.
    suboptions:
      name: {type: str, required: true, description: Role that logs in.}
      password: {type: str, required: true, description: Password of the role.}
      clients:
        type: list
        elements: str
        default: []
        description: Addresses it connects from. O(hba) must let them in.
  watchers:
    type: list
    elements: str
    default: []
    description: >-
      Roles that read the server's statistics and no data, without a password. O(hba) lets in the users of these names.
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run PostgreSQL
  metalworks.platform.postgresql_cluster:
    version: "15"
    settings: "{{ lookup('ansible.builtin.template', 'metalworks.conf.j2') }}"
    hba: "{{ lookup('ansible.builtin.template', 'pg_hba.conf.j2') }}"
    sandbox: "{{ lookup('ansible.builtin.file', 'sandbox.conf') }}"
    tls: {certificate: /etc/metalworks/tls/host.crt, key: /etc/metalworks/tls/host.key, group: metalworks-tls}
    databases:
      - {name: mlflow, owner: mlflow, password: "{{ vault_postgresql_passwords.mlflow }}"}
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
"""

import base64
import grp
import hashlib
import hmac
import json
import os
import pwd
import re
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..module_utils.earlier_software import keep_copy
from ..module_utils.host_module import HostModule
from ..module_utils.psql import data_folder, name, psql
from ..module_utils.replace_file import diff, read, replace

RELOAD_SECONDS = 10
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""The message with which a client requests TLS; the server answers S or N."""
ITERATIONS = 4096
"""Rounds of SCRAM-SHA-256, the server's own default."""
READ_ALL = "pg_read_all_data"
"""PostgreSQL's predefined role for reading, of which a reader is a member."""
WATCH = "pg_monitor"
"""Its role for statistics, of which a watcher is a member."""
# Records at start what the server was started with: of a unit file, only what systemd has loaded counts.
STAMP = """\
ExecStartPre=+/bin/sh -c 'echo "{revision} $$INVOCATION_ID" | install -D -m 0644 /dev/stdin /run/metalworks/%N.revision'
"""

# All state that decisions depend on, in one query.
STATE = """
select json_build_object(
  'listens', current_setting('listen_addresses'),
  'port', current_setting('port')::int,
  'loaded', extract(epoch from pg_conf_load_time()),
  'pending', coalesce((select json_agg(name order by name) from pg_settings where pending_restart), '[]'),
  'errors', coalesce((select json_agg(format('%s line %s: %s', f.sourcefile, f.sourceline, error))
      from pg_file_settings f left join pg_settings using (name)
      where error is not null and coalesce(context, '') <> 'postmaster'), '[]'),
  'hba_errors', coalesce((select json_agg(format('pg_hba.conf line %s: %s', line_number, error))
      from pg_hba_file_rules where error is not null), '[]'),
  'roles', (select json_object_agg(rolname, json_build_object('verifier', coalesce(rolpassword, ''), 'plain',
      rolcanlogin and not (rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls),
      'member', coalesce((select json_agg(distinct pg_get_userbyid(roleid)) from pg_auth_members
        where member = pg_authid.oid), '[]'))) from pg_authid),
  'databases', (select json_object_agg(datname, json_build_object('owner', pg_get_userbyid(datdba), 'open',
      has_database_privilege('public', oid, 'connect') or has_database_privilege('public', oid, 'temporary'),
      'grants', coalesce((select json_agg(json_build_array(pg_get_userbyid(grantee), privilege_type))
        from aclexplode(datacl) where grantee <> 0), '[]')))
      from pg_database where datname <> 'template0'));
"""


def verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the verifier that PostgreSQL stores for a password with SCRAM-SHA-256."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    shown = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{shown[0]}${shown[1]}:{shown[2]}"


def matches(password: str, known: str) -> bool:
    """Tell whether a stored verifier fits this password."""
    parts = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$.+", known)
    if not parts:
        return False
    return hmac.compare_digest(verifier(password, base64.b64decode(parts[2]), int(parts[1])), known)


def statements(
    state: dict[str, Any],
    databases: list[dict[str, str]],
    readers: list[dict[str, str]],
    watchers: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Return the differences from the wanted state, each as a description and as SQL."""
    todo: list[tuple[str, str]] = []
    roles, existing = state["roles"], state["databases"]
    logins = {one["owner"]: one["password"] for one in databases} | {one["name"]: one["password"] for one in readers}
    plain = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    for role in watchers:
        if role not in roles:
            todo.append((f"create role {role}", f"CREATE ROLE {name(role)} {plain};"))
        elif not roles[role]["plain"]:
            todo.append((f"restrict role {role}", f"ALTER ROLE {name(role)} {plain};"))
    for role, password in logins.items():
        if role not in roles:
            secret = verifier(password, os.urandom(16))
            todo.append((f"create role {role}", f"CREATE ROLE {name(role)} {plain} PASSWORD '{secret}';"))
            continue
        if not roles[role]["plain"]:
            todo.append((f"restrict role {role}", f"ALTER ROLE {name(role)} {plain};"))
        if not matches(password, roles[role]["verifier"]):
            secret = verifier(password, os.urandom(16))
            todo.append((f"set password of role {role}", f"ALTER ROLE {name(role)} PASSWORD '{secret}';"))
    for one in databases:
        database, owner = name(one["name"]), name(one["owner"])
        if one["name"] not in existing:
            options = "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'"
            todo.append((f"create database {one['name']}", f"CREATE DATABASE {database} OWNER {owner} {options};"))
        elif existing[one["name"]]["owner"] != one["owner"]:
            todo.append((f"owner of {one['name']}: {one['owner']}", f"ALTER DATABASE {database} OWNER TO {owner};"))
    ours = {one["name"]: {"open": True} for one in databases}
    for database, facts in {**ours, **existing}.items():
        # By default, the maintenance databases are open to everyone too.
        if facts["open"] and (database in ours or database in ("postgres", "template1")):
            revoke = f"REVOKE CONNECT, TEMPORARY ON DATABASE {name(database)} FROM PUBLIC;"
            todo.append((f"revoke public access to database {database}", revoke))
    for one in readers:
        todo += membership(one["name"], state, list(ours), READ_ALL)
    for role in watchers:
        todo += membership(role, state, ["postgres"], WATCH)
    return todo


def membership(reader: str, state: dict[str, Any], databases: list[str], right: str) -> list[tuple[str, str]]:
    """Return the SQL that makes a role a member of exactly this predefined one, and lets it into these databases."""
    todo: list[tuple[str, str]] = []
    role, member = name(reader), state["roles"].get(reader, {}).get("member", [])
    for group in sorted(set(member) - {right}):
        todo.append((f"revoke {group} from role {reader}", f"REVOKE {name(group)} FROM {role};"))
    if right not in member:
        todo.append((f"grant {right} to role {reader}", f"GRANT {right} TO {role};"))
    for database in {**dict.fromkeys(databases), **state["databases"]}:
        grants = state["databases"].get(database, {}).get("grants", [])
        has = {privilege for grantee, privilege in grants if grantee == reader}
        may = {"CONNECT"} if database in databases else set()
        if has - may:
            revoke = f"REVOKE ALL ON DATABASE {name(database)} FROM {role};"
            todo.append((f"revoke {', '.join(sorted(has - may))} on {database} from role {reader}", revoke))
        if may - has or (may and has - may):
            todo.append(
                (
                    f"grant CONNECT on {database} to role {reader}",
                    f"GRANT CONNECT ON DATABASE {name(database)} TO {role};",
                )
            )
    return todo


def address(listens: str) -> str:
    """Return an address to reach the server from its own host; empty if there is none."""
    first = listens.split(",")[0].strip()
    return {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)  # noqa: S104 - compared


def shown(host: str, port: int) -> bytes:
    """Return the certificate that the server presents to clients; empty without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is only compared
    with socket.create_connection((host, port), timeout=10) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            return b""
        with context.wrap_socket(plain) as client:
            return client.getpeercert(binary_form=True) or b""


class Cluster:
    """One cluster and the module that acts on it."""

    def __init__(self, module: HostModule) -> None:
        """Compute the paths and the unit of the cluster."""
        self.module, self.wants = module, module.params
        self.actions, self.diff = list[str](), list[dict[str, str]]()
        self.group: grp.struct_group | None = None
        version, cluster = self.wants["version"], self.wants["cluster"]
        self.unit = f"postgresql@{version}-{cluster}.service"
        self.log = Path(f"/var/log/postgresql/postgresql-{version}-{cluster}.log")
        self.program = Path(f"/usr/lib/postgresql/{version}/bin/postgres")
        self.data = data_folder(version, cluster)
        self.etc = Path(f"/etc/postgresql/{version}/{cluster}")
        self.settings, self.hba = self.etc / "conf.d/metalworks.conf", self.etc / "pg_hba.conf"
        self.drop_in = Path(f"/etc/systemd/system/{self.unit}.d/metalworks.conf")
        self.stamp = Path(f"/run/metalworks/{Path(self.unit).stem}.revision")

    def fail(self, reason: str) -> None:
        """End the task with the reason."""
        self.module.fail_json(msg=reason, actions=self.actions)

    def sql(self, text: str) -> str:
        """Run statements as the superuser and return their output; the first error ends the task."""
        code, out, err = psql(self.module, self.data, text)
        if code:
            self.fail(f"psql: {err.strip()}")
        return out

    def state(self) -> dict[str, Any]:
        """Return the state of the server that decisions depend on."""
        state: dict[str, Any] = json.loads(self.sql(STATE))
        return state

    def active(self) -> bool:
        """Tell whether the cluster runs."""
        return bool(self.module.run_command(["systemctl", "is-active", "--quiet", self.unit])[0] == 0)

    def systemctl(self, verb: str, unit: str) -> None:
        """Run a systemctl verb; if it fails, end the task with the last lines of the server's log."""
        code, _, err = self.module.run_command(["systemctl", verb, unit])
        if code:
            lines = self.log.read_text(errors="replace").splitlines()[-15:] if self.log.exists() else []
            self.fail("\n".join([f"systemctl {verb} {unit}: {err.strip()}", f"Last lines of {self.log}:", *lines]))

    def shows(self, name: str) -> str:
        """Return a property of the unit, as loaded by systemd."""
        command = ["systemctl", "show", self.unit, "--property", name, "--value"]
        return str(self.module.run_command(command, check_rc=True)[1]).strip()

    def act(self, action: str) -> bool:
        """Record an action; tell whether to carry it out."""
        self.actions.append(action)
        return not self.module.check_mode

    def put(self, path: Path, text: str, mode: int, owner: str = "postgres") -> str | None:
        """Make a file hold this text; return its old content if it changed."""
        old = read(path)
        if old == text:
            return None
        self.diff.append(diff(path, old, text))
        if not self.act(f"write {path}"):
            return None
        account = pwd.getpwnam(owner)
        replace(path, text, mode, account.pw_gid, account.pw_uid, self.judge if path == self.settings else None)
        return old

    def judge(self, draft: Path) -> None:
        """Let the server read its new settings, so that invalid ones never reach the running server."""
        command = [str(self.program), "-C", "shared_buffers", "-D", str(self.etc), "-c", f"config_file={draft}"]
        code, _, err = self.module.run_command(command)
        if code:
            self.fail(f"the server rejects the new settings and keeps the old ones: {err.strip()}")

    def revision(self) -> str:
        """Return a digest of the wanted sandbox."""
        return hashlib.sha256(self.sandbox().encode()).hexdigest()

    def sandbox(self) -> str:
        """Return the sandbox lines without the stamp: the given ones, and the directories that hold data."""
        places = {self.data.resolve(), (self.data / "pg_wal").resolve()}
        places |= {link.resolve() for link in (self.data / "pg_tblspc").glob("*")}
        ours = [place for place in sorted(places) if not any(place.is_relative_to(one) for one in places - {place})]
        # The `-` skips a directory that is not mounted; the server itself reports that.
        lines: str = self.wants["sandbox"]
        return lines + "".join(f"ReadWritePaths=-{place}\n" for place in ours)

    def confine(self) -> None:
        """Install the sandbox, which applies from the server's next start."""
        content = self.sandbox() + STAMP.format(revision=self.revision())
        if read(self.drop_in) != content:
            self.verify(content)
        self.put(self.drop_in, content, 0o644, "root")
        # Always, because a killed play may not have reloaded, and systemd does not report a new drop-in folder.
        if self.unconfined() and not self.module.check_mode:
            self.module.run_command(["systemctl", "daemon-reload"], check_rc=True)

    def verify(self, content: str) -> None:
        """Let systemd verify the unit before it is changed; end the task with its output."""
        with tempfile.TemporaryDirectory() as scratch:
            unit = Path(scratch, self.unit)
            unit.write_text(Path(self.shows("FragmentPath")).read_text())
            (drop_in := Path(f"{unit}.d", "metalworks.conf")).parent.mkdir()
            drop_in.write_text(content)
            code, out, err = self.module.run_command(["systemd-analyze", "verify", str(unit)])
        if code or scratch in err:
            self.fail(f"systemd rejects the sandbox; nothing was changed:\n{out}{err}")

    def unconfined(self) -> bool:
        """Tell whether the server runs without the wanted sandbox."""
        known = read(self.stamp).split()
        return known != [self.revision(), self.shows("InvocationID")]

    def read_key(self) -> None:
        """Let the server's user read the key, after checking that key and certificate fit."""
        tls = self.wants["tls"]
        if not Path(tls["certificate"]).exists() and self.module.check_mode:
            return  # only in check mode on a clean host
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls["certificate"], tls["key"])
            self.group = group = grp.getgrnam(tls["group"])
        except (OSError, KeyError) as error:  # an SSLError is an OSError
            self.fail(
                f"the server keeps the certificate it has; cannot load {tls['certificate']} with {tls['key']}: {error}"
            )
        if "postgres" not in group.gr_mem and self.act(f"add postgres to group {tls['group']}"):
            self.module.run_command(["usermod", "--append", "--groups", tls["group"], "postgres"], check_rc=True)
        if not self.module.check_mode:
            code, _, err = self.module.run_command(["runuser", "-u", "postgres", "--", "test", "-r", tls["key"]])
            if code:
                self.fail(f"the server keeps the certificate it has; postgres cannot read {tls['key']}: {err}")

    def outdated(self, state: dict[str, Any]) -> bool:
        """Tell whether the server presents another certificate than the file contains."""
        if not (host := address(state["listens"])) or not Path(self.wants["tls"]["certificate"]).exists():
            return False
        first = Path(self.wants["tls"]["certificate"]).read_text().partition("-----END")[0]
        wanted = ssl.PEM_cert_to_DER_cert(f"{first[first.index('-----BEGIN') :]}-----END CERTIFICATE-----\n")
        try:
            return shown(host, state["port"]) != wanted
        except OSError:
            return True

    def left_out(self) -> bool:
        """Tell whether the server was started before its user became a member of the key's group."""
        if not self.group:
            return True
        process = (self.data / "postmaster.pid").read_text().splitlines()[0]
        groups = re.search(r"^Groups:(.*)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return not groups or str(self.group.gr_gid) not in groups[1].split()

    def run(self) -> None:
        """Bring the cluster to the wanted state."""
        if not self.program.exists():
            # Only in check mode on a clean host; otherwise the package is installed before.
            self.act("everything: the server is not installed")
            return
        self.read_key()
        disabled = self.module.run_command(["systemctl", "is-enabled", "--quiet", "postgresql.service"])[0]
        if disabled and self.act("enable the server at boot"):
            self.systemctl("enable", "postgresql.service")
        self.confine()
        if not self.settings.exists() and not self.module.check_mode:
            keep_copy(self.hba)
        self.put(self.settings, self.wants["settings"], 0o644)
        old_hba = self.put(self.hba, self.wants["hba"], 0o640)
        if not self.active():
            if not self.act("start the server"):
                return
            self.systemctl("start", self.unit)
        state = self.load(self.state(), old_hba)
        todo = statements(state, self.wants["databases"], self.wants["readers"], self.wants["watchers"])
        allowed = [sql for action, sql in todo if self.act(action)]
        if allowed:
            self.sql("\n".join(allowed))

    def load(self, state: dict[str, Any], old_hba: str | None) -> dict[str, Any]:
        """Reload or restart the server if its files require it; return its state afterwards."""
        if wrong := [*state["errors"], *state["hba_errors"]]:
            if state["hba_errors"] and old_hba:
                self.put(self.hba, old_hba, 0o640)
            self.fail("the server rejects its new files and keeps the old settings: " + "; ".join(wrong))
        newest = max(path.stat().st_ctime for path in (self.settings, self.hba) if path.exists())
        reasons = {"to read the certificate's key": self.left_out(), "for the sandbox": self.unconfined()}
        if owed := [reason for reason, there in reasons.items() if there]:
            if self.act(f"restart {' and '.join(owed)}"):
                self.systemctl("restart", self.unit)
                state = self.state()
                if self.unconfined():
                    self.fail(f"{self.drop_in} is not in effect after a restart; see `systemctl cat {self.unit}`")
        elif (newest > state["loaded"] or self.outdated(state)) and self.act("reload"):
            self.sql("select pg_reload_conf();")
            before, deadline = state["loaded"], time.monotonic() + RELOAD_SECONDS
            while state["loaded"] == before:
                if time.monotonic() > deadline:
                    self.fail(f"the server did not load its settings within {RELOAD_SECONDS} s; see {self.log}")
                time.sleep(0.1)
                state = self.state()
        if state["pending"] and self.act(f"restart for {', '.join(state['pending'])}"):
            self.systemctl("restart", self.unit)
            state = self.state()
            if state["pending"]:
                self.fail(f"settings still not in effect after a restart: {', '.join(state['pending'])}")
        if not self.module.check_mode and self.outdated(state):
            self.fail(f"the server does not present {self.wants['tls']['certificate']} to clients; see {self.log}")
        return state


def wrong(databases: list[dict[str, str]], readers: list[dict[str, str]], watchers: Sequence[str] = ()) -> str:
    """Return what is wrong with the parameters, or an empty string."""
    names = [one["name"] for one in databases]
    if doubled := sorted({one for one in names if names.count(one) > 1}):
        return f"database listed twice: {', '.join(doubled)}"
    for one in databases:
        if one["owner"] == "postgres" or one["name"] in ("postgres", "template0", "template1"):
            return f"database {one['name']}, owner {one['owner']}: this name is reserved for the server itself"
    taken = {"postgres", *(one["owner"] for one in databases)}
    for one in readers:
        if one["name"] in taken:
            return f"reader {one['name']}: another login has this name"
        taken.add(one["name"])
    for watcher in watchers:
        if watcher in taken:
            return f"watcher {watcher}: another login has this name"
    for login, password in [(one.get("owner") or one["name"], one["password"]) for one in [*databases, *readers]]:
        if not (password.isascii() and password.isprintable() and password):
            return f"password of {login} must be printable ASCII and not empty"
    passwords = {(one["owner"], one["password"]) for one in databases}
    if len(passwords) > len({owner for owner, _ in passwords}):
        return "an owner of several databases has different passwords"
    return ""


def main() -> None:
    """Read the arguments and converge."""
    text, path = ({"type": kind, "required": True} for kind in ("str", "path"))
    module = HostModule(
        argument_spec={
            "version": text,
            "cluster": {"type": "str", "default": "main"},
            "settings": text,
            "hba": text,
            "sandbox": text,
            "tls": {"type": "dict", "required": True, "options": {"certificate": path, "key": path, "group": text}},
            "databases": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": text, "owner": text, "password": {**text, "no_log": True}},
            },
            "readers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": text,
                    "password": {**text, "no_log": True},
                    "clients": {"type": "list", "elements": "str", "default": []},
                },
            },
            "watchers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if problem := wrong(module.params["databases"], module.params["readers"], module.params["watchers"]):
        module.fail_json(msg=problem)
    cluster = Cluster(module)
    cluster.run()
    module.exit_json(changed=bool(cluster.actions), actions=cluster.actions, diff=cluster.diff)


if __name__ == "__main__":
    main()
