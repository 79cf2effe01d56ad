#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Configure and run nginx with its users and start page, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_gateway
short_description: Configure nginx with its users and start page, and keep it running
description:
  - Writes the configuration only if nginx accepts it; otherwise the old one stays and serves.
  - Reloads nginx when the running process reports another revision than the one on disk. The revision covers
    certificate, key and CA, so a play that was killed before the reload loses nothing.
  - Starts nginx, and restarts it when it was started with another unit.
options:
  configuration:
    type: str
    required: true
    description: >-
      Content of C(nginx.conf). C(@address:NAME@) becomes the address of that host, C(@sha256:TAG@) the hash of the
      first element TAG of the page for a Content-Security-Policy, and C(@revision@) the revision that nginx reports.
  unit: {type: str, required: true, description: Content of the drop-in for C(nginx.service).}
  page: {type: str, required: true, description: Content of the start page.}
  users: {type: dict, required: true, description: Passwords by user name.}
  groups: {type: list, elements: str, required: true, description: Groups of nginx besides its own.}
  files:
    type: list
    elements: path
    required: true
    description: Files that nginx reads when it loads its configuration.
  addresses:
    description: Addresses of hosts by name. Other names are looked up on the host.
    type: dict
    default: {}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run the gateway
  metalworks.platform.nginx_gateway:
    configuration: "{{ lookup('ansible.builtin.template', 'nginx.conf.j2') }}"
    unit: "{{ lookup('ansible.builtin.template', 'nginx.service.j2') }}"
    page: "{{ lookup('ansible.builtin.template', 'index.html.j2') }}"
    users: {ada: "{{ vault_user_passwords.ada }}"}
    groups: [metalworks-tls]
    addresses: {gpu-1: 192.0.2.21}
    files: [/etc/metalworks/tls/host.crt, /etc/metalworks/tls/host.key]
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
"""

import base64
import ctypes
import grp
import hashlib
import hmac
import http.client
import os
import pwd
import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ..module_utils.before import keep
from ..module_utils.earlier_software import keep_copy
from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import differs, read, replace
from ..module_utils.systemctl import show
from ..module_utils.unix_http import SocketConnection

ROUNDS = 1000
"""Rounds of SHA-256 crypt, the minimum: each request computes them, and passwords are long and random."""
RELOAD_SECONDS = 20
NGINX = Path("/usr/sbin/nginx")
CONFIGURATION = Path("/etc/nginx/nginx.conf")
CANDIDATE = Path("/etc/nginx/.nginx.conf.candidate")
FOLDER = Path("/etc/nginx/metalworks")
USERS = FOLDER / "users"
PAGE = FOLDER / "index.html"
DEFAULT_SITE = Path("/etc/nginx/sites-enabled/default")
UNIT = Path("/etc/systemd/system/nginx.service.d/metalworks.conf")
STARTED_WITH = Path("/run/metalworks/nginx.conf")
RUNTIME = Path("/run/nginx")
SOCKET = RUNTIME / "state.sock"
USER = "www-data"


def crypt(password: str, setting: str) -> str:
    """Return the C library's hash of a password."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    return str(library.crypt(password.encode(), setting.encode()).decode())


def users_file(users: dict[str, str], known: str) -> str:
    """Return nginx's password file; users keep a hash in the known file that still fits."""
    hashes = dict(line.split(":", 1) for line in known.splitlines() if ":" in line and not line.startswith("#"))
    lines = ["# Managed by Ansible."]
    for name, password in sorted(users.items()):
        old = hashes.get(name, "")
        if not (old.startswith(f"$5$rounds={ROUNDS}$") and hmac.compare_digest(crypt(password, old), old)):
            old = crypt(password, f"$5$rounds={ROUNDS}${secrets.token_hex(8)}")
        lines.append(f"{name}:{old}")
    return "\n".join(lines) + "\n"


def address(host: str) -> str:
    """Return a host's address in nginx's notation.

    Raises OSError if the host has none.
    """
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    first = sorted({entry[4][0] for entry in found}, key=lambda one: (":" in str(one), str(one)))[0]
    return f"[{first}]" if ":" in str(first) else str(first)


def fill(configuration: str, page: str, files: list[bytes], lookup: Callable[[str], str] = address) -> tuple[str, str]:
    """Return the configuration with all placeholders filled in, and its revision.

    Raises OSError for a host without an address.
    """

    def inline(tag: re.Match[str]) -> str:
        text = re.search(rf"<{tag[1]}>(.*?)</{tag[1]}>", page, re.DOTALL)
        content = text[1] if text else ""
        return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    filled = re.sub(r"@address:([^@]+)@", lambda host: lookup(host[1]), configuration)
    filled = re.sub(r"@sha256:(\w+)@", inline, filled)
    total = hashlib.sha256(filled.encode())
    for content in files:
        total.update(hashlib.sha256(content).digest())
    revision = total.hexdigest()
    return filled.replace("@revision@", revision), revision


def running() -> str:
    """Return the revision that the running nginx serves; empty if none answers."""
    connection = SocketConnection("localhost", str(SOCKET), 5)
    try:
        connection.request("GET", "/")
        return str(connection.getresponse().read().decode(errors="replace").strip())
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


class Gateway:
    """nginx on this host and the module that acts on it."""

    def __init__(self, module: HostModule) -> None:
        """Keep the module and its parameters."""
        self.module, self.wants = module, module.params
        self.actions = list[str]()

    def fail(self, reason: str) -> None:
        """End the task with the reason."""
        self.module.fail_json(msg=reason, actions=self.actions)

    def done(self) -> None:
        """End the task."""
        self.module.exit_json(changed=bool(self.actions), actions=self.actions)

    def read(self, path: str) -> bytes:
        """Return the content of a file that nginx reads; fail the task if it is missing."""
        try:
            return Path(path).read_bytes()
        except OSError as error:
            self.fail(f"nginx needs {path}: {error.strerror}. Nothing was changed.")
            raise

    def test(self, content: str) -> None:
        """Let nginx test the configuration as its own user; fail the task with its output."""
        if not RUNTIME.exists():  # the service takes it over when it starts
            RUNTIME.mkdir(mode=0o755)
            os.chown(RUNTIME, pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid)
        if not Path("/var/lib/nginx/body").exists():
            os.chown("/var/lib/nginx", pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid)
        replace(CANDIDATE, content, 0o644, 0)
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}"]
        command += [f"--groups={','.join(self.wants['groups'])}" if self.wants["groups"] else "--clear-groups"]
        command += ["--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"]
        try:
            code, _, err = self.module.run_command([*command, "--", str(NGINX), "-t", "-q", "-c", str(CANDIDATE)])
        finally:
            CANDIDATE.unlink()
        if code:
            self.fail(f"nginx rejects the configuration; the old one stays in use:\n{err}")

    def systemctl(self, *arguments: str) -> None:
        """Run a systemctl verb; fail the task with its output and the journal."""
        code, _, err = self.module.run_command(["systemctl", *arguments])
        if code:
            journal = ["journalctl", "--unit", "nginx.service", "--lines", "20", "--no-pager", "--output", "cat"]
            self.fail(f"`systemctl {' '.join(arguments)}`: {err}{self.module.run_command(journal)[1]}")

    def verify(self) -> None:
        """Let systemd verify the unit; restore the old one and fail the task if it is invalid."""
        known = UNIT.read_text() if UNIT.exists() else None
        replace(UNIT, self.wants["unit"], 0o644, 0)
        code, out, err = self.module.run_command(["systemd-analyze", "verify", "--man=no", "nginx.service"])
        if code:
            if known is None:
                UNIT.unlink()
            else:
                replace(UNIT, known, 0o644, 0)
            self.fail(f"systemd rejects the unit; the old one stays in use:\n{out}{err}")

    def address(self, host: str) -> str:
        """Return a host's address in nginx's notation.

        A name may lead to more addresses than the one that the firewalls know, such as 127.0.1.1 in an image's
        /etc/hosts.
        """
        return address(str(self.wants["addresses"].get(host, host)))

    def converge(self) -> None:
        """Bring nginx to the wanted state."""
        if not NGINX.exists():  # check mode on a clean host
            self.actions.append("install and start")
            self.done()
        contents = [
            self.read(path) if not self.module.check_mode or Path(path).exists() else b""
            for path in self.wants["files"]
        ]
        try:
            configuration, revision = fill(self.wants["configuration"], self.wants["page"], contents, self.address)
        except OSError as error:
            self.fail(f"This host cannot resolve the upstream of a site ({error}). Nothing was changed.")
        group = grp.getgrnam(USER).gr_gid
        users = users_file(self.wants["users"], read(USERS))
        files = [
            (CONFIGURATION, configuration, 0o644, 0),
            (PAGE, self.wants["page"], 0o644, 0),
            (USERS, users, 0o640, group),
        ]
        stale = [file for file in files if differs(*file)]
        self.actions += [f"write {path}" for path, *_ in stale]
        unit = differs(UNIT, self.wants["unit"], 0o644, 0)
        self.actions += [f"write {UNIT}"] * unit
        default = DEFAULT_SITE.is_symlink()
        self.actions += [f"remove {DEFAULT_SITE}"] * default

        state = show(self.module, "nginx.service", "ActiveState", "UnitFileState", "NeedDaemonReload")
        active = state["ActiveState"] in ("active", "reloading")
        started_with = read(STARTED_WITH)
        restart = not active or unit or state["NeedDaemonReload"] == "yes" or started_with != self.wants["unit"]
        reload = not restart and running() != revision
        enable = state["UnitFileState"] != "enabled"
        self.actions += ["restart" if active else "start"] * restart + ["reload"] * reload + ["enable"] * enable
        if self.module.check_mode or not self.actions:
            self.done()

        if any(path == CONFIGURATION for path, *_ in stale) or restart or reload:
            self.test(configuration)
        if unit:
            self.verify()
        if not FOLDER.exists():
            keep_copy(CONFIGURATION)
        for file in stale:
            replace(*file)
        if default:
            keep(DEFAULT_SITE)
            DEFAULT_SITE.unlink()
        if restart:
            self.systemctl("daemon-reload")
            self.systemctl("restart", "nginx.service")
        elif reload:
            self.systemctl("reload", "nginx.service")
        if enable:
            self.systemctl("--quiet", "enable", "nginx.service")
        self.wait(revision)
        self.done()

    def wait(self, revision: str) -> None:
        """Wait until the running nginx reports this revision, or fail the task."""
        deadline = time.monotonic() + RELOAD_SECONDS
        while running() != revision:
            if time.monotonic() > deadline:
                log = Path("/var/log/nginx/error.log")
                last = log.read_text(errors="replace").splitlines()[-10:] if log.exists() else []
                self.fail(
                    f"nginx did not load the configuration within {RELOAD_SECONDS} s. Its error log ends:\n"
                    + "\n".join(last)
                )
            time.sleep(0.05)


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={
            "configuration": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "page": {"type": "str", "required": True},
            "users": {"type": "dict", "required": True, "no_log": True},
            "groups": {"type": "list", "elements": "str", "required": True},
            "files": {"type": "list", "elements": "path", "required": True},
            "addresses": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    Gateway(module).converge()


if __name__ == "__main__":
    main()
