#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Look at a host's units and let its clients do real work, all at once, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_host
short_description: Check the units of a host, and run clients' work on it
description:
  - Checks that each unit is active and, where it has a URL, answers 200 there. A failed check quotes the journal.
  - Runs sessions side by side, each as a client's user. Reports verdicts and never fails.
options:
  units:
    description: Patterns of unit names, each as a mapping with C(unit) and optionally C(url), C(socket) and
      C(optional).
    type: list
    elements: dict
    default: []
  sessions:
    description: >-
      Sessions, each with C(name), C(user), C(python) (the interpreter) and C(checks), and optionally C(login) (run in
      the user's login shell), C(environment), C(env_files) (systemd's; not with C(login)), C(after) (the session to
      wait for) and C(program) (instead of O(program)). A check has C(name), C(kind), C(arguments), and optionally
      C(secret), the name of the O(secrets) entry that becomes its argument C(password).
    type: list
    elements: dict
    default: []
  secrets:
    description: Passwords that the checks need, by name.
    type: dict
    default: {}
  program:
    description: Text of the Python program that defines C(main(checks)).
    type: str
    default: ''
  timeout:
    description: Seconds that one session may take.
    type: int
    default: 150
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Do real work
  metalworks.platform.smoke_host:
    units: [{unit: minio.service, url: "http://127.0.0.1:9000/minio/health/ready"}]
    program: "{{ lookup('ansible.builtin.file', 'client.py') }}"
  become: true
"""

RETURN = r"""
checks:
  description: Verdicts.
  returned: when the host could be checked
  type: list
  elements: dict
  sample: [{name: unit mlflow.service, ok: true, skipped: false, seconds: 0.01, detail: active}]
unchecked:
  description: Why the host could not be checked.
  returned: when it could not be checked
  type: str
"""

import concurrent.futures
import fnmatch
import http.client
import json
import os
import pathlib
import re
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.unix_http import SocketHandler

MARK = "smoke-result "
END_SECONDS = 10
"""Grace period for a session that is out of time, to clean up."""


def output(argv: list[str]) -> str:
    """Return what a command prints; the exit status of systemctl adds nothing to its output."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def journal(unit: str) -> str:
    """Return the last lines of a unit's journal, in a form to append to a message."""
    lines = output(["journalctl", "--unit", unit, "--lines", "8", "--output", "cat", "--no-pager"]).strip()
    return f"; its journal ends: {' | '.join(lines.splitlines())}" if lines else ""


def units_like(pattern: str) -> list[str]:
    """Return the loaded units that match a pattern."""
    listed = output(["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern])
    return [name for line in listed.splitlines() if fnmatch.fnmatch(name := line.split()[0], pattern)]


def answer(url: str, path: str) -> str:
    """Return why a health URL fails, or an empty string; with a path, ask on that Unix socket."""
    handlers = [urllib.request.ProxyHandler({}), SocketHandler(path)] if path else []
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(url, timeout=10):
            return ""
    except urllib.error.HTTPError as error:
        return f"{path or url} answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return f"{path or url} does not answer ({getattr(error, 'reason', error)})"


def look_at(want: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a verdict for each unit that matches a pattern, or a failed one if none does."""
    verdicts = []
    found = units_like(want["unit"])
    if not found and not want.get("optional"):
        verdicts.append(verdict(f"unit {want['unit']}", False, 0, "no such unit; has site.yml run on this host?"))
    for unit in found:
        start = time.monotonic()
        state = output(["systemctl", "show", "--value", "--property=ActiveState", unit]).strip() or "unknown"
        fault = "" if state == "active" else f"{unit} is {state}; try: systemctl status {unit}"
        if not fault and want.get("url"):
            fault = answer(want["url"], want.get("socket", ""))
        detail = f"{fault}{journal(unit)}" if fault else "active" + (", healthy" if want.get("url") else "")
        verdicts.append(verdict(f"unit {unit}", not fault, time.monotonic() - start, detail))
    return verdicts


def verdict(name: str, ok: bool, seconds: float, detail: str, skipped: bool = False) -> dict[str, Any]:
    """Return a check's result in the form of smoke.json."""
    return {"name": name, "ok": ok, "skipped": skipped, "seconds": round(seconds, 3), "detail": detail}


def env_file(path: str) -> dict[str, str]:
    """Return the variables of a systemd environment file."""
    lines = pathlib.Path(path).read_text().splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith(("#", ";"))]
    return {name: re.sub(r"\\([\\\"`$])", r"\1", value.strip('"')) for name, _, value in pairs}


def command(session: dict[str, Any]) -> list[str]:
    """Return the command that starts the session's interpreter as its user, with the program on stdin.

    It uses absolute paths, because a service's environment may set another PATH.
    """
    if session.get("login"):  # starts from an empty environment, like a person's login
        more = [f"{name}={value}" for name, value in session.get("environment", {}).items()]
        inner = shlex.join(["exec", "env", *more, session["python"], "-"])
        return ["/usr/bin/su", "--login", session["user"], "--command", inner]
    return ["/usr/sbin/runuser", "--user", session["user"], "--", session["python"], "-"]


def to_its_end(done: subprocess.Popen[str], text: str, timeout: int) -> tuple[str, str]:
    """Return what a process printed and its error, which is that it gave no answer when its time is up.

    It is asked to end, so that it takes away what it made; su and runuser pass that on, and see to it.
    """
    try:
        printed, words = done.communicate(text, timeout)
        return printed, words or f"it ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        done.terminate()
    try:
        printed, _ = done.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        done.kill()
        printed, _ = done.communicate()
    return printed, f"no answer within {timeout} s"


def work(session: dict[str, Any], program: str, secrets: dict[str, str], timeout: int) -> list[dict[str, Any]]:
    """Run a session to its end and return a verdict for every one of its checks."""
    start = time.monotonic()
    checks = [{**check, "arguments": {**check.get("arguments", {})}} for check in session["checks"]]
    for check in checks:
        if "secret" in check:
            check["arguments"]["password"] = secrets[check["secret"]]
    try:
        environment = dict(os.environ)
        for path in session.get("env_files", []):
            environment |= env_file(path)
        environment |= session.get("environment", {})
        # Program and arguments come on stdin: every user can read a command line.
        text = f"{program}\nmain(json.loads({json.dumps(checks)!r}))\n"
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command(session), env=environment, cwd="/", stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as done:
            printed, words = to_its_end(done, text, timeout)
    except OSError as error:
        printed, words = "", f"{error.filename}: {error.strerror}; has site.yml run on this host?"
    found = [json.loads(line[len(MARK) :]) for line in printed.splitlines() if line.startswith(MARK)]
    last = " | ".join(words.strip().splitlines()[-5:])
    missing = [check["name"] for check in checks[len(found) :]]
    return found + [verdict(name, False, time.monotonic() - start, f"not done: {last}") for name in missing]


def run_all(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Check every unit, and run every session as soon as the one before it has ended."""
    running: dict[str, concurrent.futures.Future[list[dict[str, Any]]]] = {}

    def in_turn(session: dict[str, Any]) -> list[dict[str, Any]]:
        if "after" in session:
            concurrent.futures.wait([running[session["after"]]])
        program = session.get("program", params["program"])
        return work(session, program, params["secrets"], params["timeout"])

    with concurrent.futures.ThreadPoolExecutor(2 * (os.cpu_count() or 1) + 4) as pool:
        looks = [pool.submit(look_at, want) for want in params["units"]]
        for session in params["sessions"]:
            running[session["name"]] = pool.submit(in_turn, session)
        return [check for future in [*looks, *running.values()] for check in future.result()]


def main() -> None:
    """Read the arguments and run the checks."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "default": []},
            "sessions": {"type": "list", "elements": "dict", "default": []},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "program": {"type": "str", "default": "", "no_log": True},  # not secret, but too long for the journal
            "timeout": {"type": "int", "default": 150},
        },
        supports_check_mode=False,
    )
    module.exit_json(changed=False, checks=run_all(module.params))


if __name__ == "__main__":
    main()
