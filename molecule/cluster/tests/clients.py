"""Access to the platform in tests: as a stranger from an outside host, or as a user."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from scripts.common import ROOT, environment, lock
from scripts.lab import hosts as lab_hosts
from scripts.lab.hosts import secrets

DOMAIN = "metalworks.internal"
ADDRESSES = {host.name: host.address for host in lab_hosts.declared()}
STRANGER = "customer-db"
"""A host on the network that is not part of the platform."""
PLATFORM = ["services-1", "gpu-1", "cpu-1", "dev-1", "dev-2"]
CA = f"/tmp/ca-{os.getpid()}.crt"
"""The CA's certificate on that host, for the tests of this process."""


def over_ssh(name: str, command: str, text: str) -> str:
    """Return a command's output on a host; `text` goes to its standard input, so that secrets leave no trace."""
    __tracebackhide__ = True  # pytest shows the arguments of a failed test
    argv = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), name, command]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True, timeout=300).stdout


def ask(
    site: str,
    path: str,
    *,
    login: str = "",
    token: str | None = None,
    body: dict[str, Any] | None = None,
    headers: Iterable[str] = (),
    method: str = "",
) -> tuple[int, Any]:
    """Return status and content of a response to the outside host; TLS is verified with the platform's CA.

    `login` is name:password. curl reads everything from standard input.
    """
    name = f"{site}.{DOMAIN}".lstrip(".")
    lines = [f'url = "https://{name}{path}"', f'resolve = "{name}:443:{ADDRESSES["services-1"]}"']
    lines += ['write-out = "\\n%{http_code}"', f'cacert = "{CA}"', "silent", "noproxy = *"]
    lines += [f'header = "{header}"' for header in headers]
    if method:
        lines.append(f'request = "{method}"')
    if login:
        lines.append(f'user = "{login}"')
    if token is not None:
        lines.append(f'header = "Authorization: Bearer {token}"')
    if body is not None:
        quoted = json.dumps(body).replace("\\", "\\\\").replace('"', '\\"')
        lines += [f'data = "{quoted}"', 'header = "Content-Type: application/json"']
    text, _, status = over_ssh(STRANGER, "curl --config -", "\n".join(lines)).rpartition("\n")
    return int(status), json.loads(text) if text.startswith(("{", "[")) else text


def as_person(
    person: str,
    site: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: Iterable[str] = (),
    method: str = "",
) -> tuple[int, Any]:
    """Return status and content of a response to a user."""
    login = f"{person}:{secrets()['vault_user_passwords'][person]}"
    return ask(site, path, login=login, body=body, headers=headers, method=method)


def run(host: str, python: str, program: str, asked: dict[str, Any]) -> Any:
    """Return the JSON that a program prints on a host. The program and its input both go through stdin."""
    __tracebackhide__ = True  # a failure would show its secret arguments
    feed = f"import io, sys\nsys.stdin = io.StringIO({json.dumps(asked)!r})\n{program}"
    try:
        return json.loads(over_ssh(host, f"sudo {python} -", feed))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        complaint = error.stderr
    pytest.fail(f"{host}: {complaint}")


def import_authority() -> None:
    """Copy the CA's certificate to the outside host, as a user would import it."""
    over_ssh(STRANGER, f"tee {CA}", secrets()["vault_ca_certificate"])


def play(*arguments: str, **choices: Any) -> str:
    """Run playbooks on the cluster with other variables, one call at a time; they must succeed. Return their output."""
    command = ["ansible-playbook", "-i", str(lab_hosts.INVENTORY), *arguments, "--extra-vars", json.dumps(choices)]
    with lock("site"):
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout + done.stderr


def by_name(vault: dict[str, Any]) -> dict[str, str]:
    """Return every secret by name; for private keys, a unique line."""
    found = {}
    for name, value in vault.items():
        for holder, text in value.items() if isinstance(value, dict) else [("", value)]:
            if "BEGIN CERTIFICATE" not in text:
                found[f"{name} {holder}".rstrip()] = text.splitlines()[1] if "PRIVATE KEY" in text else text
    return found
