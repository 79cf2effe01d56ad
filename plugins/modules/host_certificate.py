#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Install a host's certificate, its trust in the CA, and the daily check; create the key on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_certificate
short_description: Issue a host's certificate, and have the host trust its CA
description:
  - Creates the private key on the host, and issues the certificate in the controller's memory. The CA's key never
    leaves the controller, and the host's key never leaves the host.
  - Renews the certificate when it nears its end, or when names, key or CA have changed.
  - Creates a new key for a new CA, and puts it in place together with its certificate.
  - Installs a daily check that fails when the certificate is about to expire.
  - Decides by what is on the host, so the next run finishes one that was killed.
options:
  ca_certificate: {type: str, required: true, description: Certificate of the internal CA in PEM.}
  ca_private_key: {type: str, required: true, description: Private key of the internal CA in PEM.}
  own:
    type: dict
    required: true
    description: The team's own C(certificate), C(key) and C(ca) in PEM. Empty to issue one.
  names: {type: list, elements: str, required: true, description: Names and addresses that clients reach the host by.}
  valid_days: {type: int, required: true, description: Days for which a certificate is valid.}
  renew_days: {type: int, required: true, description: Days before its end at which to renew it.}
  warn_days: {type: int, required: true, description: Days before its end at which the daily check fails.}
  check: {type: str, required: true, description: Shell script of the daily check.}
  service: {type: str, required: true, description: Content of the unit that runs the check.}
  timer: {type: str, required: true, description: Content of the timer that starts the unit.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Issue the certificate
  metalworks.platform.host_certificate:
    ca_certificate: "{{ vault_ca_certificate }}"
    ca_private_key: "{{ vault_ca_private_key }}"
    own: {}
    names: [host-1.example.org, 192.0.2.1]
    valid_days: 90
    renew_days: 30
    warn_days: 20
    check: "{{ lookup('ansible.builtin.template', 'check.sh.j2') }}"
    service: "{{ lookup('ansible.builtin.template', 'check.service.j2') }}"
    timer: "{{ lookup('ansible.builtin.template', 'check.timer.j2') }}"
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
"""

import grp
import os
import shutil
from pathlib import Path

from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import differs, replace
from ..module_utils.replace_file import read as read_text
from ..module_utils.system_user import ensure_system_group

GROUP = "metalworks-tls"
TLS = Path("/etc/metalworks/tls")
CA = TLS / "ca.crt"
CERTIFICATE = TLS / "host.crt"
KEY = TLS / "host.key"
NEXT_KEY = TLS / ".host.key.next"
CHECK = Path("/opt/metalworks/certificates/check.sh")
UNITS = Path("/etc/systemd/system")
SERVICE = "metalworks-certificate.service"
TIMER = "metalworks-certificate.timer"
# Not metalworks-*.crt: role base removes files with that prefix that are not its own.
TRUSTED = Path("/usr/local/share/ca-certificates/metalworks_ca.crt")
TRUSTED_LINK = Path("/etc/ssl/certs/metalworks_ca.pem")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def read(path: Path) -> str:
    """Return the content of a file, even if damaged; empty if it is missing."""
    return read_text(path, errors="replace")


class Host:
    """The host's files, and the module that changes them."""

    def __init__(self, module: HostModule) -> None:
        """Keep the module and its parameters."""
        self.module, self.wants = module, module.params
        self.actions = list[str]()
        try:
            self.group = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            self.group = -1

    def may(self, action: str) -> bool:
        """Record an action; tell whether to carry it out."""
        self.actions.append(action)
        return not (self.module.check_mode or self.wants["look"])

    def openssl(self, *arguments: str) -> str:
        """Return the output of openssl; empty if it fails."""
        code, out, _ = self.module.run_command(["openssl", *arguments])
        return "" if code else str(out)

    def request(self, key: Path) -> str:
        """Return a certificate request for this key; the controller decides what it is valid for."""
        return self.openssl("req", "-new", "-batch", "-sha256", "-key", str(key), "-subj", "/CN=host")

    def look(self) -> dict[str, str]:
        """Return certificate and request; create a key if there is no usable one or the CA has changed."""
        request = self.request(KEY) if read(CA) == self.wants["ca"] else ""
        if request:
            # A killed play may have left a key for a CA that is no longer wanted.
            NEXT_KEY.unlink(missing_ok=True)
        else:
            self.actions.append("make a key")
            if not self.module.check_mode:
                self.folder(TLS)
                command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
                self.put_key(NEXT_KEY, self.module.run_command(command, check_rc=True)[1])
                request = self.request(NEXT_KEY)
        self.wants["certificate"] = read(CERTIFICATE)
        return {"certificate": self.wants["certificate"], "request": request}

    def folder(self, path: Path) -> None:
        """Create a folder that belongs to root and that everyone may enter."""
        path.mkdir(parents=True, exist_ok=True, mode=0o755)

    def put_key(self, path: Path, content: str) -> None:
        """Write a key that only root can read, until it is in its place."""
        replace(path, content, 0o600)

    def put(self, path: Path, content: str) -> bool:
        """Make a public file hold this content; tell whether it changed."""
        if not differs(path, content):
            return False
        if self.may(f"write {path}"):
            replace(path, content)
        return True

    def owned(self, path: Path, mode: int, group: int) -> bool:
        """Tell whether a path belongs to root and this group, with this mode."""
        facts = path.stat()
        return (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (0, group, mode)

    def apply(self) -> None:
        """Put all files in place; the CA certificate last, because it marks the others as issued by that CA."""
        if self.group < 0 and self.may(f"make group {GROUP}"):
            ensure_system_group(self.module, GROUP)
            self.group = grp.getgrnam(GROUP).gr_gid
        if not (TLS.is_dir() and self.owned(TLS, 0o755, 0)) and self.may(f"make {TLS}"):
            self.folder(TLS)
            os.chown(TLS, 0, 0)
            TLS.chmod(0o755)
        self.place_key()
        renewed = bool(self.wants["certificate"]) and self.put(CERTIFICATE, self.wants["certificate"])
        self.put(CA, self.wants["ca"])
        self.trust()
        self.schedule(renewed)

    def place_key(self) -> None:
        """Put the key in place with its owner and mode."""
        if self.wants["key"] and not self.module.check_mode:
            NEXT_KEY.unlink(missing_ok=True)  # left by a killed play
        if self.wants["key"] and read(KEY) != self.wants["key"]:
            if not self.module.check_mode:
                self.put_key(NEXT_KEY, self.wants["key"])
        elif not NEXT_KEY.exists():
            if KEY.exists() and not self.owned(KEY, 0o640, self.group) and self.may(f"owner and mode of {KEY}"):
                os.chown(KEY, 0, self.group)
                KEY.chmod(0o640)
            return
        if self.may(f"new key in {KEY}"):
            os.chown(NEXT_KEY, 0, self.group)
            NEXT_KEY.chmod(0o640)
            NEXT_KEY.replace(KEY)

    def trust(self) -> None:
        """Make every program on the host trust the CA, and no longer trust the previous one."""
        written = self.put(TRUSTED, self.wants["ca"])
        if not written and self.wants["ca"].strip() in read(BUNDLE):
            return
        program = shutil.which("update-ca-certificates")
        if program and self.may("rebuild what the host trusts"):
            # Only --fresh replaces the links of a file that changed.
            self.module.run_command([program, *(["--fresh"] if TRUSTED_LINK.exists() else [])], check_rc=True)

    def schedule(self, renewed: bool) -> None:
        """Schedule the daily check, and reset its failure after a renewal."""
        self.put(CHECK, self.wants["check"])
        units = {SERVICE: self.wants["service"], TIMER: self.wants["timer"]}
        written = [name for name, text in units.items() if self.put(UNITS / name, text)]
        names = ["--property", "ActiveState,UnitFileState,NeedDaemonReload"]
        out = self.module.run_command(["systemctl", "show", TIMER, SERVICE, *names], check_rc=True)[1]
        timer, service = (dict(line.split("=", 1) for line in part.splitlines()) for part in out.split("\n\n"))
        acting = not (self.module.check_mode or self.wants["look"])
        if acting and (written or "yes" in (timer["NeedDaemonReload"], service["NeedDaemonReload"])):
            self.module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        fresh = timer["ActiveState"] == "active" and TIMER not in written
        if not (fresh and timer["UnitFileState"] == "enabled") and self.may(f"start {TIMER}"):
            self.module.run_command(["systemctl", "--quiet", "enable", TIMER], check_rc=True)
            self.module.run_command(["systemctl", "restart", TIMER], check_rc=True)
        if renewed and service["ActiveState"] == "failed" and acting:
            self.module.run_command(["systemctl", "reset-failed", SERVICE], check_rc=True)


def main() -> None:
    """Read the arguments and look or act."""
    text = {"type": "str", "required": True}
    module = HostModule(
        argument_spec={
            "look": {"type": "bool", "default": False},
            "ca": text,
            "certificate": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": True},
            "check": text,
            "service": text,
            "timer": text,
        },
        supports_check_mode=True,
    )
    host = Host(module)
    found = host.look() if module.params["look"] else {}
    host.apply()
    module.exit_json(changed=bool(host.actions), actions=host.actions, **found)


if __name__ == "__main__":
    main()
